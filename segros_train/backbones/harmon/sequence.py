"""The sequence that the language model reads to draw an image: text, hints, and the image block.

The image block, visible cells and buffers, ends the sequence. Hints stand at `slot` tokens into the text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

__all__ = ["SequenceLayout", "attention_mask", "join", "position_ids"]


@dataclass(frozen=True)
class SequenceLayout:
    """Where the parts of a sequence of S tokens stand.

    Attributes:
        valid: [B, S] bool, False on padding.
        hints: First and last-plus-one index of the hints.
        image: Index of the image block's first token.
    """

    valid: Tensor
    hints: tuple[int, int]
    image: int


def join(
    text: Tensor, text_valid: Tensor, image: Tensor, *, hints: Tensor | None = None, slot: int = 0
) -> tuple[Tensor, SequenceLayout]:
    """Put text, hints and the image block in order.

    Args:
        text: [B, L, D], padded on the right.
        text_valid: [B, L] bool.
        image: [B, I, D].
        hints: [B, H, D], or None.
        slot: Number of text tokens in front of the hints.

    Returns:
        The sequence [B, S, D] and its layout.
    """
    parts, valid, count = [text, image], [text_valid, _ones(image)], 0
    if hints is not None:
        count = hints.shape[1]
        parts = [text[:, :slot], hints, text[:, slot:], image]
        valid = [text_valid[:, :slot], _ones(hints), text_valid[:, slot:], _ones(image)]
    sequence = torch.cat(parts, dim=1)
    layout = SequenceLayout(torch.cat(valid, dim=1), (slot, slot + count), sequence.shape[1] - image.shape[1])
    return sequence, layout


def _ones(rows: Tensor) -> Tensor:
    return torch.ones(rows.shape[:2], dtype=torch.bool, device=rows.device)


def position_ids(valid: Tensor) -> Tensor:
    """Return positions [B, S] that padding does not advance, for `valid` [B, S] bool."""
    return (valid.long().cumsum(dim=1) - 1).clamp(min=0)


def attention_mask(layout: SequenceLayout, attention: Literal["paper", "native"], *, first_query: int = 0) -> Tensor:
    """Return who may attend to whom, [B, 1, S - first_query, S] bool with queries in rows.

    `"native"` is causal. `"paper"` lets hints see one another and the image block see everything.

    Source: SeGroS paper, section 8.2
    """
    size = layout.valid.shape[1]
    allowed = torch.ones(size, size, dtype=torch.bool, device=layout.valid.device).tril()
    if attention == "paper":
        first, last = layout.hints
        allowed[first:last, first:last] = True
        allowed[layout.image :] = True
    return (allowed[first_query:] & layout.valid.unsqueeze(1)).unsqueeze(1)
