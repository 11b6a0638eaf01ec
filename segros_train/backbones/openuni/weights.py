"""Where a card's weights lie: a checkpoint of ours, or the files their authors published. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from segros_train.backbones import SHIPPED_WEIGHTS
from segros_train.files import segros_home
from segros_train.types import BackboneCard, WeightFile

__all__ = ["CHECKPOINT_FILES", "Located", "locate", "missing_weights"]

CHECKPOINT_FILES = ("config.json", "model.safetensors", "tokenizer.json")
OWN = "model"
"""The role of OpenUni's own file, which lies over the files of the models it is made of."""


@dataclass(frozen=True)
class Located:
    """What was found of a card's weights.

    Attributes:
        checkpoint: Folder of a checkpoint of ours; None where published files serve.
        files: Published files by role; those that a checkpoint lies over, where the card names any.
        overlays: OpenUni's own files, the base first.
        missing: A sentence per missing file: what it is and how to get it.
    """

    checkpoint: Path | None = None
    files: Mapping[str, Path] = field(default_factory=dict)
    overlays: tuple[Path, ...] = ()
    missing: tuple[str, ...] = ()


def missing_weights(card: BackboneCard, source: Path | None = None) -> list[str]:
    """Return a sentence per file that `load` would miss; empty when all are there."""
    return list(locate(card, source).missing)


def locate(card: BackboneCard, source: Path | None) -> Located:
    """Find the weights of a card.

    Published files are looked for in `$SEGROS_HOME/weights/<name>`, then in the hub's cache. A given source is a
    checkpoint of ours, which holds what was trained and lies over them, or a folder with a file of OpenUni's.

    Args:
        card: What to look for.
        source: A folder; None for shipped weights or published files.
    """
    if source is not None and not source.is_dir():
        return Located(missing=(f"{source} is no folder; name a checkpoint or a folder with the published files.",))
    folder = SHIPPED_WEIGHTS / card.name if source is None else source
    if _is_checkpoint(folder) or (source is None and not card.weights):
        absent = [name for name in CHECKPOINT_FILES if not (folder / name).is_file()]
        remedy = "the checkpoint is incomplete, take another"
        if source is None:
            remedy = f"reinstall segros, or make them: segros train --method pretrain --backbone {card.name}"
        missing = [f"{folder / name} is missing: {remedy}." for name in absent]
        # What OpenUni's own file holds, the checkpoint holds too.
        files, lacking = _published(card)
        return Located(folder, files, missing=(*missing, *(line for line in lacking if not _is_own(line, card))))
    if source is not None and not card.weights:
        return Located(missing=(f"{source} holds no checkpoint of {card.name}: config.json is missing.",))
    return _with_overlay(card, source)


def _with_overlay(card: BackboneCard, source: Path | None) -> Located:
    """Find published files, and a file of OpenUni's in `source` that lies over them."""
    files, missing = _published(card)
    overlays = [files[OWN]] if OWN in files else []
    if source is not None:
        own = sorted(path for path in source.iterdir() if path.suffix in (".pth", ".pt", ".safetensors"))
        if own:
            overlays += own
            # A fine-tuned file may hold all that the base's does; whether it does is seen when it is read.
            missing = [line for line in missing if not _is_own(line, card)]
        else:
            missing = [f"{source} holds no file of OpenUni's (.pth or .safetensors).", *missing]
    return Located(files=files, overlays=tuple(overlays), missing=tuple(missing))


def _is_own(line: str, card: BackboneCard) -> bool:
    return f"({OWN} of {card.name})" in line


def _is_checkpoint(folder: Path) -> bool:
    """Tell a checkpoint of ours from a clone of a hub repository, which may also hold a `config.json`."""
    try:
        values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(values, dict) and "family" in values


def _published(card: BackboneCard) -> tuple[dict[str, Path], list[str]]:
    """Return the published files that are there by role, and a sentence per missing one."""
    kept = segros_home() / "weights" / card.name
    files: dict[str, Path] = {}
    missing: list[str] = []
    for weight in card.weights:
        path = next((path for name in _names(weight) if (path := _find(kept, weight, name)) is not None), None)
        if path is not None:
            files[weight.role] = path
        else:
            place = kept / weight.repo.rpartition("/")[2]
            missing.append(
                f"{_names(weight)[0]} of {weight.repo} ({weight.role} of {card.name}) is missing: "
                f"hf download {weight.repo} {_names(weight)[0]} --local-dir {place}"
            )
    return files, missing


def _names(weight: WeightFile) -> tuple[str, ...]:
    """Return the names a file may have: large ones are published in parts, with an index."""
    name = weight.filename or {"tokenizer": "tokenizer.json"}.get(weight.role, "model.safetensors")
    return (name, f"{name}.index.json") if name.endswith(".safetensors") else (name,)


def _find(kept: Path, weight: WeightFile, name: str) -> Path | None:
    """Look in the folder of a repository below `kept`, then in the hub's cache.

    Repositories have folders of their own, as files of several have the same name.
    """
    own = kept / weight.repo.rpartition("/")[2] / name
    if own.is_file():
        return own
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(weight.repo, name)
    return Path(found) if isinstance(found, str) else None
