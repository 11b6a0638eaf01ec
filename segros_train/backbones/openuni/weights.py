"""Where a card's weights lie: a checkpoint of ours, or the files their authors published. Imports no torch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from segros_train.backbones.common.weights import Located, absent, in_cache, locate_checkpoint
from segros_train.errors import Problem
from segros_train.files import segros_home
from segros_train.types import BackboneCard, WeightFile

__all__ = ["locate"]

OWN = "model"
"""The role of OpenUni's own file, which lies over the files of the models it is made of."""


def locate(card: BackboneCard, source: Path | None = None) -> Located:
    """Find the weights of a card.

    Published files are looked for in `$SEGROS_HOME/weights/<name>`, then in the hub's cache. A given source is a
    checkpoint of ours, which holds what was trained and lies over them, or a folder with a file of OpenUni's.

    Args:
        card: What to look for.
        source: A folder; None for shipped weights or published files.
    """
    found = locate_checkpoint(card, source)
    if found is None:
        return _with_overlay(card, source)
    if found.checkpoint is None:
        return found
    files, lacking = _published(card)
    lacking.pop(OWN, None)  # What OpenUni's own file holds, the checkpoint holds too.
    return replace(found, files=files, missing=(*found.missing, *lacking.values()))


def _with_overlay(card: BackboneCard, source: Path | None) -> Located:
    """Find published files, and a file of OpenUni's in `source` that lies over them."""
    files, missing = _published(card)
    overlays = [files[OWN]] if OWN in files else []
    if source is not None:
        own = sorted(path for path in source.iterdir() if path.suffix in (".pth", ".pt", ".safetensors"))
        if own:
            overlays += own
            # A fine-tuned file may hold all that the base's does; whether it does is seen when it is read.
            missing.pop(OWN, None)
        else:
            none = Problem(f"{source} holds no file of OpenUni's (.pth or .safetensors)", "Name a folder with one.")
            missing = {"": none, **missing}
    return Located(files=files, overlays=tuple(overlays), missing=tuple(missing.values()))


def _published(card: BackboneCard) -> tuple[dict[str, Path], dict[str, Problem]]:
    """Return by role the published files that are there, and what the others lack."""
    kept = segros_home() / "weights" / card.name
    files: dict[str, Path] = {}
    missing: dict[str, Problem] = {}
    for weight in card.weights:
        path = next((path for name in _names(weight) if (path := _find(kept, weight, name)) is not None), None)
        if path is not None:
            files[weight.role] = path
        else:
            place = kept / weight.repo.rpartition("/")[2]
            missing[weight.role] = absent(card, weight, _names(weight)[0], place=place)
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
    return own if own.is_file() else in_cache(weight, name)
