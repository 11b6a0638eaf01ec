"""Modes in which a model is run: without dropout, and without gradient."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import nn

__all__ = ["evaluating", "inference"]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Keep a model in eval mode, as a context."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


@contextmanager
def inference(model: nn.Module, *, precision: Literal["auto", "fp32", "bf16"] = "auto") -> Iterator[None]:
    """Run a model in eval mode without gradient, as a context.

    Args:
        model: The model.
        precision: Of matrix products; `"auto"` is bf16 on CUDA and where weights are, and fp32 elsewhere.
    """
    device = next(model.parameters()).device.type
    if precision == "auto":
        is_low = device == "cuda" or any(weight.dtype == torch.bfloat16 for weight in model.parameters())
        precision = "bf16" if is_low else "fp32"
    with evaluating(model), torch.no_grad(), torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
        yield
