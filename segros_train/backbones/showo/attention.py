"""Attention in blocks of rows, each with as little of a mask as it needs.

A dense mask keeps the fused kernels from being used, and most rows need none: an image block sees everything, a hint
block all of itself. Stock layers are given the blocks through a keyword and an attention function of this name; without
blocks it is the stock one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

__all__ = ["BLOCK_ATTENTION", "RowBlock", "register"]

BLOCK_ATTENTION = "segros_row_blocks"


@dataclass(frozen=True)
class RowBlock:
    """Consecutive rows with the columns that they may see.

    Attributes:
        num_rows: Rows; blocks follow each other and cover all.
        columns: First column and end of the columns that are seen.
        mask: Bool, broadcast to [B, 1, num_rows, columns], True where a row sees a column; None for all of them.
    """

    num_rows: int
    columns: tuple[int, int]
    mask: Tensor | None = None


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    blocks: Sequence[RowBlock] | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **stock: Any,
) -> tuple[Tensor, None]:
    """Attend block by block; shapes [B, heads, S, width] in, [B, S, heads, width] out."""
    if blocks is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **stock
        )
    parts, start = [], 0
    for block in blocks:
        first, last = block.columns
        parts.append(
            F.scaled_dot_product_attention(
                query[:, :, start : start + block.num_rows],
                key[:, :, first:last],
                value[:, :, first:last],
                attn_mask=block.mask,
                dropout_p=dropout,
                scale=scaling,
            )
        )
        start += block.num_rows
    return torch.cat(parts, dim=2).transpose(1, 2).contiguous(), None


def register() -> str:
    """Make the attention known to transformers and return its name."""
    AttentionInterface.register(BLOCK_ATTENTION, _attend)
    return BLOCK_ATTENTION
