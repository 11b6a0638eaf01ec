"""What makes two numbers the same number: declared values and versions, and the content of weights and data.

Source code is no part of it. A method, a family's configuration and an evaluator declare a `version`, which their
author raises when numbers move. Whether finished work may be taken up is a stricter question, which
`segros_eval.pipeline.reuse` answers.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from segros_train.backbones.loading import family_of
from segros_train.errors import PrerequisiteError
from segros_train.files import content_key, file_sha256, located, segros_home, write_json
from segros_train.types import BackboneCard, DataCard

__all__ = [
    "data_identity",
    "folder_content",
    "latents_folder",
    "to_jsonable",
    "shipped_weights",
    "source_content",
    "version_of",
    "weights_digest",
]


def to_jsonable(value: Any) -> Any:
    """Return `value` as JSON-ready data; a dataclass carries the name of its type, and the
    fields that it has `retired`, at the value they had in every key.

    Raises:
        TypeError: If a value has no canonical form.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Path):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: to_jsonable(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {"type": type(value).__name__, **getattr(type(value), "retired", {}), **fields}
    if isinstance(value, Mapping):
        return {str(key): to_jsonable(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [to_jsonable(item) for item in value]
    raise TypeError(f"{type(value).__name__} has no plain form.")


def version_of(declared: Any) -> int:
    """Return the version of a declared thing: an integer that its author raises when numbers move; 1 where none is.

    Args:
        declared: A method, a family's configuration or an evaluator.
    """
    return int(getattr(type(declared), "version", 1))


def data_identity(data: DataCard | None) -> dict[str, Any] | None:
    """Return what determines training data: where it comes from, its revision, and the content of its sources."""
    if data is None:
        return None
    sources = {"generation": data.generation, "instruction": data.instruction}
    content = {name: None if source is None else source_content(located(source)) for name, source in sources.items()}
    return {**sources, "revision": data.revision, "content": content, "crop": data.crop}


def source_content(source: str) -> Any:
    """Return what identifies the content of a source of training data.

    It is a manifest of its files, or the version of the embedded world; None for data of the hub, whose revision stands
    in its card, and for what is absent.

    Args:
        source: As a data card has it, the folder spelled out.
    """
    kind, colon, place = source.partition(":")
    if kind.startswith("shapes"):
        from segros_train.data.shapes.world import WORLD_VERSION

        return {"world": WORLD_VERSION}
    return None if not colon or kind == "hub" else folder_content(Path(place))


def folder_content(folder: Path) -> str | None:
    """Return the digest of a manifest (names, sizes and sha256) of the files below a folder, or of one file.

    A file's digest is computed once and kept by its path, size and time. Hidden files do not count. None where there
    is nothing.
    """
    if folder.is_file():
        files = [folder]
    else:
        inside = (path for path in folder.rglob("*") if path.is_file())
        files = sorted(
            path for path in inside if not any(part.startswith(".") for part in path.relative_to(folder).parts)
        )
    if not files:
        return None
    digests = _KeptDigests(segros_home() / "digests.json")
    manifest = [
        [path.name if path == folder else path.relative_to(folder).as_posix(), path.stat().st_size, digests.of(path)]
        for path in files
    ]
    digests.save()
    return content_key(manifest)


class _KeptDigests:
    """Digests of files that were read before, by path, size and time."""

    def __init__(self, path: Path) -> None:
        self._path, self._is_new = path, False
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            kept = {}
        self._kept: dict[str, Any] = kept if isinstance(kept, dict) else {}

    def of(self, path: Path) -> str:
        """Return the sha256 of a file."""
        state = path.stat()
        mark = [state.st_size, state.st_mtime_ns]
        entry = self._kept.get(str(path.resolve()))
        if isinstance(entry, list) and len(entry) == 3 and entry[:2] == mark:
            return str(entry[2])
        digest, self._is_new = file_sha256(path), True
        self._kept[str(path.resolve())] = [*mark, digest]
        return digest

    def save(self) -> None:
        """Keep what was computed, where there is a place for it."""
        if self._is_new:
            with suppress(PrerequisiteError):
                write_json(self._path, self._kept)


def weights_digest(card: BackboneCard, checkpoint: Path | None) -> dict[str, str]:
    """Return a digest per file of the weights a stage starts from.

    Published files count by their declared digest, or by their address where none is known.

    Raises:
        PrerequisiteError: If `checkpoint` is not a checkpoint of ours.
    """
    if checkpoint is not None:
        return _folder_digest(checkpoint)
    if card.weights:
        return {file.role: file.sha256 or f"{file.repo}/{file.filename or ''}" for file in card.weights}
    folder = shipped_weights(card)
    return {} if folder is None else _folder_digest(folder)


def shipped_weights(card: BackboneCard) -> Path | None:
    """Return the folder of the weights that come with a backbone's family; None where there are none."""
    folder: Path | None = None if card.weights else family_of(card).locate(card).checkpoint
    return folder if folder is not None and folder.is_dir() else None


def latents_folder(card: BackboneCard, data: DataCard) -> Path:
    """Return the folder of what a backbone's frozen parts make of training images, below `$SEGROS_HOME/latents`.

    Its name holds a digest of what determines them: weights, configuration, image size, and the content of the images,
    each cropped in its one way.
    """
    identity = {
        "config": to_jsonable(card.config),
        "weights": weights_digest(card, None),
        "image_size_px": card.image_size_px,
        "generation": data.generation,
        "revision": data.revision,
        "content": source_content(located(data.generation)),
    }
    return segros_home() / "latents" / f"{card.name}-{content_key(identity)[:16]}"


def _folder_digest(folder: Path) -> dict[str, str]:
    if not (folder / "config.json").is_file():
        raise PrerequisiteError(
            f"{folder} is not a checkpoint: it has no config.json",
            "Name a folder that `segros train` wrote, e.g. runs/<run>/train/checkpoints/<step>.",
        )
    return {
        path.name: file_sha256(path) for path in sorted(folder.iterdir()) if path.suffix in (".json", ".safetensors")
    }
