"""Families of backbones, each in a sub-package named like its `BackboneCard.family`.

A family's package offers `load(card, *, source, device, precision)`. What families do alike stands in modules beside
them.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

from segros_train.errors import unknown_name

if TYPE_CHECKING:
    from segros_train.backbone import Backbone
    from segros_train.backbones.common.precision import Precision
    from segros_train.types import BackboneCard

__all__ = ["load"]

FAMILIES = ("harmon", "openuni", "showo")


def load(
    card: BackboneCard, *, source: Path | None = None, device: str = "cpu", precision: Precision = "fp32"
) -> Backbone:
    """Build a backbone with its weights.

    Args:
        card: What to build.
        source: A checkpoint of ours (a directory with `config.json`), or a directory with the upstream files
            that `card.weights` names; None for shipped weights (`weights/<name>`) or the local cache.
        device: Torch device.
        precision: Of the weights: `"fp32"` to train them; to draw and answer, `"auto"` is bf16 on a CUDA device and
            fp32 elsewhere. What needs more than bf16 stays in float32.

    Raises:
        PrerequisiteError: If weights are missing, foreign or damaged.
    """
    if card.family not in FAMILIES:
        raise unknown_name("backbone family", card.family, FAMILIES)
    family = importlib.import_module(f"segros_train.backbones.{card.family}.loading")
    return family.load(card, source=source, device=device, precision=precision)
