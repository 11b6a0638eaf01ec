"""Where the parts of a drawing sequence stand, and what each position may attend to: offsets, never a search for ids.

Columns lie as `[soi hints eoi] [pads, text] [soi codes eoi]`, in blocks of fixed width. Their order, which rotary
positions and causality follow, is another: pads come first, and slot `prefix` puts the hints in front of the task
token, slot `user` behind it. So samples with texts of different lengths, with and without hints, share one batch.

Rules, with H for the hint block, T for text and V for the last block:

- V sees everything that is valid; T is causal. Without hints this is upstream's mask for drawing.
- `paper`: H sees all of H and nothing else; T sees all of H.
- `native`: H and T are causal, but every position sees the hints themselves, as upstream's reading of CLIP features.

A pad is seen by pads alone. Upstream keeps pads up to a fixed length as positions, so a row's positions start at the
number of pads left out.

Source: SeGroS, section 8.2; showlab/Show-o training/prompting_utils.py (masks) @ 45a5a2de
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from segros_train.backbones.showo.attention import RowBlock

__all__ = ["DrawingLayout", "drawing_layout", "reading_mask"]


@dataclass(frozen=True)
class DrawingLayout:
    """The columns of B drawing sequences of length S.

    Attributes:
        valid: [B, S] bool, False on pads.
        order: [B, S] long, place of each column in the sequence.
        num_hints: Columns of the hint block, its two tokens included; 0 without hints.
        num_text: Columns of the text block.
        offset: Position of the first column in order: the pads left out.
    """

    valid: Tensor
    order: Tensor
    num_hints: int
    num_text: int
    offset: int = 0

    @property
    def image_start(self) -> int:
        """Column of the token in front of the codes."""
        return self.num_hints + self.num_text

    @property
    def positions(self) -> Tensor:
        """Position ids, [B, S] long."""
        return self.order + self.offset

    def mask(self, attention: Literal["paper", "native"]) -> Tensor:
        """Return what may be attended to, [B, 1, S, S] bool: rows see columns."""
        columns = torch.arange(self.order.shape[1], device=self.order.device)
        in_hints, in_image = columns < self.num_hints, columns >= self.image_start
        allowed = (self.order[:, None, :] <= self.order[:, :, None]) | in_image[None, :, None]
        if self.num_hints and attention == "paper":
            allowed = torch.where(in_hints[None, :, None], in_hints[None, None, :], allowed | in_hints[None, None, :])
        elif self.num_hints:
            allowed = allowed | (in_hints & (columns > 0) & (columns < self.num_hints - 1))[None, None, :]
        pads = ~self.valid
        causal = self.order[:, None, :] <= self.order[:, :, None]
        seen = torch.where(pads[:, :, None], pads[:, None, :] & causal, allowed & self.valid[:, None, :])
        return seen.unsqueeze(1)

    def blocks(self, attention: Literal["paper", "native"]) -> tuple[RowBlock, ...] | None:
        """Return `mask` block by block, with the same result on valid rows; None where only the mask will do.

        Rows of the image block need a mask over columns where there are pads, of the text block a small one, of the
        hint block none: rows of dropped hints are read by nobody.
        """
        if self.num_hints and attention == "native":
            return None
        size, start = self.order.shape[1], self.image_start
        causal = self.mask(attention)[:, :, self.num_hints : start, :start]
        complete = bool(self.valid.all())
        image = RowBlock(size - start, (0, size), None if complete else self.valid[:, None, None])
        hints = (RowBlock(self.num_hints, (0, self.num_hints)),) if self.num_hints else ()
        return (*hints, RowBlock(self.num_text, (0, start), causal), image)


def drawing_layout(
    text_valid: Tensor,
    num_image: int,
    *,
    num_hints: int = 0,
    with_hints: Tensor | None = None,
    slot: Literal["prefix", "user"] = "prefix",
    offset: int = 0,
) -> DrawingLayout:
    """Lay out drawing sequences.

    Args:
        text_valid: [B, W] bool, padded on the left.
        num_image: Columns of the last block, its two tokens included.
        num_hints: Columns of the hint block; 0 for none.
        with_hints: [B] bool, False where a sample's hints are dropped; None keeps all.
        slot: Where the hints stand.
        offset: Pads left out of every row.
    """
    size, device = len(text_valid), text_valid.device
    kept = torch.ones(size, dtype=torch.bool, device=device) if with_hints is None else with_hints
    hints_valid = kept[:, None].expand(size, num_hints)
    valid = torch.cat([hints_valid, text_valid, torch.ones(size, num_image, dtype=torch.bool, device=device)], dim=1)
    rank = torch.full_like(valid, 3, dtype=torch.long)
    rank[:, :num_hints] = 2 if slot == "user" else 1
    rank[:, num_hints + text_valid.shape[1] :] = 4
    if slot == "user":
        first = num_hints + text_valid.long().argmax(dim=1, keepdim=True)
        rank = rank.scatter(1, first, 1)
    rank = rank.masked_fill(~valid, 0)
    order = rank.argsort(dim=1, stable=True).argsort(dim=1)
    return DrawingLayout(valid, order, num_hints, text_valid.shape[1], offset)


def reading_mask(length: int, *, first: int, last: int, device: torch.device) -> Tensor:
    """Return the mask of reading sequences, [1, 1, S, S] bool: causal, and columns [first, last) seen by all.

    Args:
        length: S.
        first: First column seen by all: 0 where codes are read, else the first of the features.
        last: End of these columns: behind the closing token where codes are read, else behind the features.
        device: Torch device.
    """
    columns = torch.arange(length, device=device)
    causal = columns[None, :] <= columns[:, None]
    return (causal | ((columns >= first) & (columns < last))[None, :])[None, None]
