"""Build a Show-o with its weights, or a fresh one; no torch is imported before."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from segros_train.backbones.showo.weights import locate

if TYPE_CHECKING:
    from segros_train.backbones.common.precision import Precision
    from segros_train.backbones.showo.adapter import Showo
    from segros_train.types import BackboneCard

__all__ = ["fresh", "load", "locate"]


def load(
    card: BackboneCard, *, source: Path | None = None, device: str = "cpu", precision: Precision = "fp32"
) -> Showo:
    """Build a Show-o with its weights, in eval mode.

    Args:
        card: What to build.
        source: A checkpoint of ours, or a folder of published files; None for shipped weights, else the
            published files in `$SEGROS_HOME/weights/<name>/<role>` or the hub's cache.
        device: Torch device.
        precision: Of the weights; `"fp32"` to train them, see `backbones.load`.

    Raises:
        PrerequisiteError: If weights are missing, foreign or damaged, or a file of instructions cannot be read.
    """
    from segros_train.backbones.common.pretrained import read_checkpoint
    from segros_train.backbones.showo import state_dict
    from segros_train.backbones.showo.adapter import Showo

    found = locate(card, source)
    found.require(card, source)
    if found.checkpoint is not None:
        read = partial(state_dict.tokenizer_of, card.config)
        kept = read_checkpoint(found.checkpoint, card, function=state_dict.FUNCTION, tokenizer=read)
        model = state_dict.build(
            card.config, kept.state, origin=str(found.checkpoint), device=device, precision=precision
        )
        return Showo(card, model, kept.tokenizer, conditioning=kept.conditioning)
    tokenizer = state_dict.tokenizer_of(card.config, found.files["tokenizer"])
    state = state_dict.published_state(found.files)
    model = state_dict.build(card.config, state, origin=str(found.files["model"]), device=device, precision=precision)
    return Showo(card, model, tokenizer)


def fresh(card: BackboneCard, *, tokenizer: Path, seed: int, device: str = "cpu") -> Showo:
    """Build a Show-o with random weights, to be pretrained.

    Args:
        card: What to build.
        tokenizer: A `tokenizer.json`.
        seed: Seed of the weights.
        device: Torch device.

    Raises:
        PrerequisiteError: If the tokenizer cannot be read.
    """
    import torch

    from segros_train.backbones.showo.adapter import Showo
    from segros_train.backbones.showo.model import ShowoModel, initialise
    from segros_train.backbones.showo.state_dict import tokenizer_of

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ShowoModel(card.config)
    initialise(model, torch.Generator().manual_seed(seed))
    return Showo(card, model.to(device).eval(), tokenizer_of(card.config, tokenizer))
