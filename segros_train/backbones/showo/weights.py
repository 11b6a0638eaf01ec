"""Where a card's weights lie: a checkpoint of ours, or the files their authors published. Imports no torch.

Show-o's language model and its tokenizer of images are published under one file name, so each role has a folder of
its own: `$SEGROS_HOME/weights/<card>/<role>`.
"""

from __future__ import annotations

import json
from pathlib import Path

from segros_train.backbones import SHIPPED_WEIGHTS
from segros_train.backbones.harmon.weights import CHECKPOINT_FILES, Located
from segros_train.files import segros_home
from segros_train.types import BackboneCard, WeightFile

__all__ = ["locate", "missing_weights"]

STEMS = ("pytorch_model", "model", "diffusion_pytorch_model")
SUFFIXES = (".safetensors", ".bin", ".safetensors.index.json", ".bin.index.json")
"""Upstream saves `pytorch_model.bin` and looks for `pytorch_model.safetensors`; either may be sharded."""


def missing_weights(card: BackboneCard, source: Path | None = None) -> list[str]:
    """Return a sentence per file that `load` would miss; empty when all are there."""
    return list(locate(card, source).missing)


def locate(card: BackboneCard, source: Path | None) -> Located:
    """Find the weights of a card.

    A given source must hold the model itself; the other published files are looked for in its folders by role, then
    where published files are kept, then in the hub's cache.

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
    if source is not None and not card.weights:
        return Located(missing=(f"{source} holds no checkpoint of {card.name}: config.json is missing.",))
    files: dict[str, Path] = {}
    missing: list[str] = []
    for weight in card.weights:
        own_only = source is not None and weight.role == "model"
        folders = [] if source is None else [source / weight.role, *([source] if weight.role == "model" else [])]
        folders += [] if own_only else [kept / weight.role]
        path = next((found for folder in folders if (found := _in_folder(folder, weight))), None)
        if path is None and not own_only:
            path = _in_cache(weight)
        if path is not None:
            files[weight.role] = path
            continue
        name = _names(weight)[0] if weight.filename is None else weight.filename
        missing.append(
            f"{name} of {weight.repo} ({weight.role} of {card.name}) is missing: "
            f"hf download {weight.repo} --local-dir {source if own_only else kept / weight.role}"
        )
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


def _in_cache(weight: WeightFile) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    for name in _names(weight):
        found = try_to_load_from_cache(weight.repo, name)
        if isinstance(found, str):
            return Path(found)
    return None
