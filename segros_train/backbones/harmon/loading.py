"""Build a Harmon with its weights, or a fresh one; no torch is imported before."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from segros_train.backbones.harmon.weights import locate

if TYPE_CHECKING:
    from segros_train.backbones.common.precision import Precision
    from segros_train.backbones.harmon.adapter import Harmon
    from segros_train.types import BackboneCard

__all__ = ["fresh", "load", "locate"]


def load(
    card: BackboneCard, *, source: Path | None = None, device: str = "cpu", precision: Precision = "fp32"
) -> Harmon:
    """Build a Harmon with its weights, in eval mode.

    Args:
        card: What to build.
        source: A checkpoint of ours, or a folder of published files; None for shipped weights, else the
            published files in `$SEGROS_HOME/weights/<name>` or the hub's cache.
        device: Torch device.
        precision: Of the weights; `"fp32"` to train them, see `backbones.load`.

    Raises:
        PrerequisiteError: If weights are missing, foreign or damaged, or a file of instructions cannot be read.
    """
    from segros_train.backbones.common.instructions import instructions_from
    from segros_train.backbones.common.pretrained import read_checkpoint
    from segros_train.backbones.harmon import state_dict
    from segros_train.backbones.harmon.adapter import Harmon
    from segros_train.backbones.harmon.prompts import HarmonTokenizer

    found = locate(card, source)
    found.require(card, source)
    read, conditioning = HarmonTokenizer.from_file, None
    if found.checkpoint is not None:
        kept = read_checkpoint(found.checkpoint, card, function=state_dict.FUNCTION, tokenizer=read)
        origin, state, tokenizer, conditioning = found.checkpoint, kept.state, kept.tokenizer, kept.conditioning
    else:
        origin, tokenizer = found.files["model"], read(found.files["tokenizer"])
        state = state_dict.published_state(found.files)
    model = state_dict.build(card.config, state, origin=str(origin), device=device, precision=precision)
    instructions = instructions_from(card.config.instructions_file)
    return Harmon(card, model, tokenizer, conditioning=conditioning, instructions=instructions)


def fresh(card: BackboneCard, *, tokenizer: Path, seed: int, device: str = "cpu") -> Harmon:
    """Build a Harmon with random weights, to be pretrained.

    Args:
        card: What to build.
        tokenizer: A `tokenizer.json`.
        seed: Seed of the weights.
        device: Torch device.

    Raises:
        PrerequisiteError: If the tokenizer cannot be read.
    """
    import torch

    from segros_train.backbones.common.instructions import instructions_from
    from segros_train.backbones.harmon.adapter import Harmon
    from segros_train.backbones.harmon.model import HarmonModel, initialise
    from segros_train.backbones.harmon.prompts import HarmonTokenizer

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = HarmonModel(card.config)
    initialise(model, torch.Generator().manual_seed(seed))
    texts = HarmonTokenizer.from_file(tokenizer)
    return Harmon(card, model.to(device).eval(), texts, instructions=instructions_from(card.config.instructions_file))
