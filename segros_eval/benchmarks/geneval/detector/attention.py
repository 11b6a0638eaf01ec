r"""Deformable attention on a CPU as one weighted sum of gathered rows.

A query looks at P points of each of L levels, for each of its N heads: with weights $a_{lp}$ summing to 1 it takes
$\sum_{lp} a_{lp} V_l(x_{lp})$, where $V_l(x)$ is the level's value at a point between cells, bilinear and zero outside.
A bilinear value is itself a weighted sum of four cells, so that the whole is a sum of 4 L P rows of values with weights
that are products; `embedding_bag` computes such sums many times faster than sampling each level as an image does.
Levels get a border of zeros, and points are held to it, so that no point needs a case of its own. Queries go some at a
time, with a column per head, level and point, so that all of their numbers stay in the caches.

Source: Zhu et al. 2020, Deformable DETR, equation (3); the same function as in transformers, to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["gathered_attention"]

_ROWS_AT_ONCE = 1024


@dataclass(frozen=True)
class _Columns:
    """Numbers of the N L P columns, [N L P] each, where row N c + n holds the values of cell c for head n.

    Attributes:
        sides: [2, N L P] width and height of the level, in cells.
        strides: Rows from a cell to that below.
        starts: Row of the level's first cell, for the head.
        num_heads: N, the rows from a cell to that beside it.
    """

    sides: Tensor
    strides: Tensor
    starts: Tensor
    num_heads: int


def gathered_attention(
    attention: Any, states: Tensor, *, positions: Tensor, centres: Tensor, shapes: Sequence[tuple[int, int]]
) -> Tensor:
    """Return what the cells of all levels take from each other, [B, T, D].

    Args:
        attention: A `Mask2FormerPixelDecoderEncoderMultiscaleDeformableAttention` of transformers.
        states: [B, T, D] of the T cells of all levels, level by level. There is no padding that a mask would hide.
        positions: [T, D], added to the states for queries.
        centres: [T, 2] x and y of each cell in 0..1.
        shapes: Height and width of each level.
    """
    columns = _columns(shapes, num_heads=attention.n_heads, num_points=attention.n_points)
    offsets = attention.sampling_offsets
    projections = zip(offsets.weight.unflatten(0, (-1, 2)).unbind(1), offsets.bias.view(-1, 2).unbind(1), strict=True)
    across, down = projections
    taken = torch.empty_like(states)
    for image, values in enumerate(attention.value_proj(states)):
        rows = _bordered(values, shapes).view(-1, values.shape[1] // attention.n_heads)
        for start in range(0, len(values), _ROWS_AT_ONCE):
            part = slice(start, start + _ROWS_AT_ONCE)
            queries = states[image, part] + positions[part]
            # A point in cells: the centre of the first cell lies at 0, and offsets are in cells already.
            x, y = (
                functional.linear(queries, *projection).add_(centres[part, axis, None] * sides - 0.5)
                for axis, (projection, sides) in enumerate(zip((across, down), columns.sides, strict=True))
            )
            logits = attention.attention_weights(queries).unflatten(-1, (attention.n_heads, -1))
            # As `softmax` does it, which is slow over so few numbers.
            shares = logits.sub_(logits.amax(-1, keepdim=True)).exp_()
            weights = shares.div_(shares.sum(-1, keepdim=True)).flatten(1)
            taken[image, part] = _sums(rows, x, y, weights, columns)
    projected: Tensor = attention.output_proj(taken)
    return projected


def _sums(rows: Tensor, x: Tensor, y: Tensor, weights: Tensor, columns: _Columns) -> Tensor:
    """Return the weighted sums of rows of values at [Q, N L P] points between cells, [Q, N D]."""
    (widths, heights), strides, num_heads = columns.sides, columns.strides, columns.num_heads
    held_x, held_y = (torch.clamp(given, -torch.ones_like(far), far) for given, far in ((x, widths), (y, heights)))
    column, row = held_x.floor(), held_y.floor()
    right, below = held_x - column, held_y - row
    # Whole numbers below 2^24 are exact in float32.
    corner = torch.addcmul(columns.starts, row, strides).add_(column, alpha=num_heads).to(torch.int32)
    under = corner + strides.to(torch.int32)
    lower = weights * below
    upper = weights - lower
    upper_right, lower_right = upper * right, lower * right
    corners = (corner, corner + num_heads, under, under + num_heads)
    shares = (upper - upper_right, upper_right, lower - lower_right, lower_right)
    indices, factors = (
        torch.cat([one.view(len(x) * num_heads, -1) for one in four], dim=1) for four in (corners, shares)
    )
    return functional.embedding_bag(indices, rows, mode="sum", per_sample_weights=factors).view(len(x), -1)


def _bordered(values: Tensor, shapes: Sequence[tuple[int, int]]) -> Tensor:
    """Return [T, D] values with zeros around each level: a cell before, and two behind for a border's neighbours."""
    levels = values.split([height * width for height, width in shapes])
    bordered = [
        functional.pad(level.unflatten(0, shape), (0, 0, 1, 2, 1, 2)).flatten(0, 1)
        for level, shape in zip(levels, shapes, strict=True)
    ]
    return torch.cat(bordered)


def _columns(shapes: Sequence[tuple[int, int]], *, num_heads: int, num_points: int) -> _Columns:
    sizes = [(height + 3) * (width + 3) for height, width in shapes]
    firsts = [start + width + 4 for start, (_, width) in zip(accumulate(sizes[:-1], initial=0), shapes, strict=True)]

    def spread(of_levels: Sequence[int]) -> Tensor:
        return torch.tensor(of_levels, dtype=torch.float32).repeat_interleave(num_points).repeat(num_heads)

    heads = torch.arange(num_heads, dtype=torch.float32).repeat_interleave(len(shapes) * num_points)
    sides = torch.stack([spread([width for _, width in shapes]), spread([height for height, _ in shapes])])
    return _Columns(
        sides=sides,
        strides=num_heads * spread([width + 3 for _, width in shapes]),
        starts=num_heads * spread(firsts) + heads,
        num_heads=num_heads,
    )
