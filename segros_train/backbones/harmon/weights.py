"""Where a card's weights lie: a checkpoint of ours, or the files its authors published. Imports no torch."""

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


@dataclass(frozen=True)
class Located:
    """What was found of a card's weights.

    Attributes:
        checkpoint: Folder of a checkpoint of ours; None where published files serve.
        files: Published files by role.
        missing: A sentence per missing file: what it is and how to get it.
    """

    checkpoint: Path | None = None
    files: Mapping[str, Path] = field(default_factory=dict)
    missing: tuple[str, ...] = ()


def missing_weights(card: BackboneCard, source: Path | None = None) -> list[str]:
    """Return a sentence per file that `load` would miss; empty when all are there."""
    return list(locate(card, source).missing)


def locate(card: BackboneCard, source: Path | None) -> Located:
    """Find the weights of a card.

    A given source must hold the weights themselves; the other published files (autoencoder, tokenizer) are then
    also looked for where published files are kept: `$SEGROS_HOME/weights/<name>`, then the hub's cache.

    Args:
        card: What to look for.
        source: A checkpoint of ours or a folder of published files; None for shipped weights or published files.
    """
    if source is not None and not source.is_dir():
        return Located(missing=(f"{source} is no folder; name a checkpoint or a folder with the published files.",))
    folder = SHIPPED_WEIGHTS / card.name if source is None else source
    if _is_checkpoint(folder) or (source is None and not card.weights):
        absent = [name for name in CHECKPOINT_FILES if not (folder / name).is_file()]
        remedy = "reinstall segros" if source is None else "the checkpoint is incomplete, take another"
        return Located(folder, missing=tuple(f"{folder / name} is missing: {remedy}." for name in absent))
    return _published(card, source)


def _is_checkpoint(folder: Path) -> bool:
    """Tell a checkpoint of ours from a clone of a hub repository, which may also hold a `config.json`."""
    try:
        values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(values, dict) and "family" in values


def _published(card: BackboneCard, source: Path | None) -> Located:
    kept = segros_home() / "weights" / card.name
    files: dict[str, Path] = {}
    missing: list[str] = []
    if source is not None and not card.weights:
        missing.append(f"{source} holds no checkpoint of {card.name}: config.json is missing.")
    for weight in card.weights:
        own_only = source is not None and weight.role == "model"
        path = _in_folder(source, weight) or (None if own_only else _in_folder(kept, weight) or _in_cache(weight))
        if path is not None:
            files[weight.role] = path
        else:
            place = source if own_only else kept
            name = _filename(weight)
            missing.append(
                f"{name} of {weight.repo} ({weight.role} of {card.name}) is missing: "
                f"hf download {weight.repo} {name} --local-dir {place}"
            )
    return Located(files=files, missing=tuple(missing))


def _filename(weight: WeightFile) -> str:
    """Name the file of a role: of a repository named as a whole, the one that the role needs."""
    return weight.filename or {"tokenizer": "tokenizer.json"}.get(weight.role, "model.safetensors")


def _in_folder(folder: Path | None, weight: WeightFile) -> Path | None:
    if folder is None:
        return None
    candidates = (folder / _filename(weight), folder / Path(_filename(weight)).name)
    return next((path for path in candidates if path.is_file()), None)


def _in_cache(weight: WeightFile) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(weight.repo, _filename(weight))
    return Path(found) if isinstance(found, str) else None
