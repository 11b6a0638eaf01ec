"""Families of backbones: each is a package, of this project or of the user, with a module `loading`.

It lies beside the module of the family's configuration, so that a card leads to it, and offers
`load(card, *, source, device, precision)` and, without torch, `locate(card, source)`, which says what is missing.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segros_train.errors import PrerequisiteError

if TYPE_CHECKING:
    from segros_train.backbone import Backbone
    from segros_train.backbones.common.precision import Precision
    from segros_train.types import BackboneCard

__all__ = ["family_module", "family_of", "load"]


def family_module(card: BackboneCard) -> str:
    """Return the name of a family's module `loading`, which lies beside that of its configuration."""
    return f"{type(card.config).__module__.rpartition('.')[0]}.loading"


def family_of(card: BackboneCard) -> Any:
    """Import a family's module `loading`, of this project or of the user, which has `load` and `locate`.

    Raises:
        PrerequisiteError: If it cannot be imported.
    """
    try:
        return importlib.import_module(family_module(card))
    except ImportError as error:
        raise PrerequisiteError(
            f"Family {card.family!r} of {card.name} cannot be loaded: {error}",
            f"A family's configuration has a module {family_module(card)} beside it, with `load` and `locate`.",
        ) from error


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
    backbone: Backbone = family_of(card).load(card, source=source, device=device, precision=precision)
    return backbone
