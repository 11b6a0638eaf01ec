"""Memory for time: what the backward pass computes again instead of keeping.

A transformer of n blocks keeps every intermediate of every block; with `run_blocks` it keeps the n inputs of its blocks
and computes a block's intermediates when its gradient is due. A sum over independent rows (the diffusion head, the
vocabulary of answers) keeps nothing but its rows with `sum_in_chunks`. Neither changes a loss or gradient by more than
the rounding of a sum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

__all__ = ["residual_stream", "run_blocks", "sum_in_chunks"]


def residual_stream(x: Tensor) -> Tensor:
    """Return `x` in the precision of matrix products under autocast, itself otherwise.

    Blocks add to the stream that they are given: begun in bf16 it stays there, at half the memory of float32.
    """
    device = x.device.type
    return x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x


def run_blocks(blocks: Iterable[Callable[..., Tensor]], x: Tensor, *args: Any, recompute: bool) -> Tensor:
    """Pass `x` through the blocks, each given `args` as well.

    Args:
        blocks: Callables of (x, *args).
        x: What the first block reads.
        args: What every block reads besides.
        recompute: Whether to keep the inputs of blocks alone where a gradient is wanted.
    """
    recompute = recompute and torch.is_grad_enabled()
    for block in blocks:
        x = checkpoint(block, x, *args, use_reentrant=False) if recompute else block(x, *args)
    return x


def sum_in_chunks(loss: Callable[..., Tensor], *rows: Tensor, chunk: int, recompute: bool = True) -> Tensor:
    """Return the sum of `loss(*rows)` over chunks of rows.

    Args:
        loss: Return the summed loss of some rows, a scalar; its rows must not depend on each other.
        rows: Tensors with one first dimension R in common.
        chunk: Largest number of rows at once.
        recompute: Whether to keep the rows alone where a gradient is wanted.
    """
    recompute = recompute and torch.is_grad_enabled()
    parts = [
        checkpoint(loss, *part, use_reentrant=False) if recompute else loss(*part)
        for part in zip(*(tensor.split(chunk) for tensor in rows), strict=True)
    ]
    return parts[0] if len(parts) == 1 else torch.stack(parts).sum()
