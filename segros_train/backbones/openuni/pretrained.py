"""Checkpoints of ours: what was trained, and, where no repository publishes the rest, all of it."""

from __future__ import annotations

from pathlib import Path

import torch

from segros_train.backbone import Conditioning
from segros_train.backbones.common import pretrained
from segros_train.backbones.openuni.model import OpenUniModel
from segros_train.backbones.openuni.prompts import OpenUniTokenizer
from segros_train.backbones.openuni.state_dict import is_frozen
from segros_train.types import BackboneCard

__all__ = ["FUNCTION", "write_checkpoint"]

FUNCTION = ("llm", "connector", "sana", "vision", "autoencoder", "num_queries", "flow_shift")
"""The parts of a configuration that decide what weights compute; the others are choices of a run."""


def write_checkpoint(
    directory: Path,
    model: OpenUniModel,
    *,
    card: BackboneCard,
    tokenizer: OpenUniTokenizer,
    conditioning: Conditioning,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write a checkpoint of ours, see `checkpoints.write_checkpoint`.

    What is frozen is left out where the card names its published files.
    """
    pretrained.write_checkpoint(
        directory,
        {key: value for key, value in model.state_dict().items() if not (card.weights and is_frozen(key))},
        card=card,
        config=model.config,
        tokenizer=tokenizer.tokenizer,
        conditioning=conditioning,
        dtype=dtype,
    )
