"""Where a card's weights lie: a checkpoint of ours, or the files their authors published. Imports no torch.

Show-o's language model and its tokenizer of images are published under one file name, so each role has a folder of
its own: `$SEGROS_HOME/weights/<card>/<role>`.
"""

from __future__ import annotations

from pathlib import Path

from segros_train.backbones.common.weights import Located, absent, in_cache, locate_checkpoint
from segros_train.errors import Problem
from segros_train.files import segros_home
from segros_train.types import BackboneCard, WeightFile

__all__ = ["locate"]

STEMS = ("pytorch_model", "model", "diffusion_pytorch_model")
SUFFIXES = (".safetensors", ".bin", ".safetensors.index.json", ".bin.index.json")
"""Upstream saves `pytorch_model.bin` and looks for `pytorch_model.safetensors`; either may be sharded."""


def locate(card: BackboneCard, source: Path | None = None) -> Located:
    """Find the weights of a card.

    A given source must hold the model itself; the other published files are looked for in its folders by role, then
    where published files are kept, then in the hub's cache.

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
        folders = [] if source is None else [source / weight.role, *([source] if weight.role == "model" else [])]
        folders += [] if own_only else [kept / weight.role]
        path = next((found for folder in folders if (found := _in_folder(folder, weight))), None)
        if path is None and not own_only:
            path = in_cache(weight, *_names(weight))
        if path is not None:
            files[weight.role] = path
        else:
            place = source if source and own_only else kept / weight.role
            missing.append(absent(card, weight, _names(weight)[0], place=place, whole=True))
    return Located(files=files, missing=tuple(missing))


def _names(weight: WeightFile) -> tuple[str, ...]:
    """Return the names a role's file may have, the likeliest first."""
    if weight.filename is not None:
        return (weight.filename,)
    if weight.role == "tokenizer":
        return ("tokenizer.json",)
    return tuple(stem + suffix for stem in STEMS for suffix in SUFFIXES)


def _in_folder(folder: Path, weight: WeightFile) -> Path | None:
    return next((folder / name for name in _names(weight) if (folder / name).is_file()), None)
