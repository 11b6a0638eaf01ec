"""Where a card's weights lie: a checkpoint of ours, or the files its authors published. Imports no torch."""

from __future__ import annotations

from pathlib import Path

from segros_train.backbones.common.weights import Located, absent, in_cache, locate_checkpoint
from segros_train.errors import Problem
from segros_train.files import segros_home
from segros_train.types import BackboneCard, WeightFile

__all__ = ["locate"]


def locate(card: BackboneCard, source: Path | None = None) -> Located:
    """Find the weights of a card.

    A given source must hold the weights themselves; the other published files (autoencoder, tokenizer) are then
    also looked for where published files are kept: `$SEGROS_HOME/weights/<name>`, then the hub's cache.

    Args:
        card: What to look for.
        source: A checkpoint of ours or a folder of published files; None for shipped weights or published files.
    """
    return locate_checkpoint(card, source) or _published(card, source)


def _published(card: BackboneCard, source: Path | None) -> Located:
    kept = segros_home() / "weights" / card.name
    files: dict[str, Path] = {}
    missing: list[Problem] = []
    for weight in card.weights:
        own_only = source is not None and weight.role == "model"
        path = _in_folder(source, weight) or (
            None if own_only else _in_folder(kept, weight) or in_cache(weight, _filename(weight))
        )
        if path is not None:
            files[weight.role] = path
        else:
            missing.append(absent(card, weight, _filename(weight), place=source if source and own_only else kept))
    return Located(files=files, missing=tuple(missing))


def _filename(weight: WeightFile) -> str:
    """Name the file of a role: of a repository named as a whole, the one that the role needs."""
    return weight.filename or {"tokenizer": "tokenizer.json"}.get(weight.role, "model.safetensors")


def _in_folder(folder: Path | None, weight: WeightFile) -> Path | None:
    if folder is None:
        return None
    candidates = (folder / _filename(weight), folder / Path(_filename(weight)).name)
    return next((path for path in candidates if path.is_file()), None)
