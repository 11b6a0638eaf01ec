"""Build an OpenUni with its weights, or a fresh one; no torch is imported before."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from segros_train.backbones.openuni.weights import locate

if TYPE_CHECKING:
    from segros_train.backbones.common.precision import Precision
    from segros_train.backbones.openuni.adapter import OpenUni
    from segros_train.types import BackboneCard

__all__ = ["fresh", "load", "locate"]


def load(
    card: BackboneCard, *, source: Path | None = None, device: str = "cpu", precision: Precision = "fp32"
) -> OpenUni:
    """Build an OpenUni with its weights, in eval mode.

    Args:
        card: What to build.
        source: A checkpoint of ours, or a folder with a file of OpenUni's that lies over the card's own; None for
            shipped weights, else the published files in `$SEGROS_HOME/weights/<name>` or the hub's cache.
        device: Torch device.
        precision: Of the weights; `"fp32"` to train them, see `backbones.load`.

    Raises:
        PrerequisiteError: If weights are missing, foreign or damaged, or a file of instructions cannot be read.
    """
    from segros_train.backbones.common.pretrained import read_checkpoint
    from segros_train.backbones.openuni import state_dict
    from segros_train.backbones.openuni.adapter import OpenUni
    from segros_train.backbones.openuni.pretrained import FUNCTION
    from segros_train.backbones.openuni.prompts import OpenUniTokenizer

    found = locate(card, source)
    found.require(card, source)
    state_dict.check_settings(card.config, found.files)
    state, read = state_dict.hub_state(found.files) if card.weights else {}, OpenUniTokenizer.from_file
    if found.checkpoint is not None:
        kept = read_checkpoint(found.checkpoint, card, function=FUNCTION, tokenizer=read)
        origin = str(found.checkpoint)
        model = state_dict.build(
            card.config, {**state, **kept.state}, origin=origin, device=device, precision=precision
        )
        return OpenUni(card, model, kept.tokenizer, conditioning=kept.conditioning)
    state = state_dict.overlaid(state, found.overlays)
    model = state_dict.build(card.config, state, origin=str(found.overlays[-1]), device=device, precision=precision)
    return OpenUni(card, model, read(found.files["tokenizer"]))


def fresh(card: BackboneCard, *, tokenizer: Path, seed: int, device: str = "cpu") -> OpenUni:
    """Build an OpenUni with random weights, to be pretrained.

    Args:
        card: What to build.
        tokenizer: A `tokenizer.json`.
        seed: Seed of the weights.
        device: Torch device.

    Raises:
        PrerequisiteError: If the tokenizer cannot be read.
    """
    import torch

    from segros_train.backbones.openuni.adapter import OpenUni
    from segros_train.backbones.openuni.model import OpenUniModel
    from segros_train.backbones.openuni.prompts import OpenUniTokenizer

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = OpenUniModel(card.config)
    return OpenUni(card, model.to(device).eval(), OpenUniTokenizer.from_file(tokenizer))
