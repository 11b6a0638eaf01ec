"""Sets of patches: how many, which ones, and on which grid.

**One order.** A map of scores ranks the patches once, highest first, equals by index. Top sets are
the head of that order and bottom sets its tail, so a top share and a bottom share that sum to at
most 1 never overlap, whatever the ties.

**Counts.** Floor and ceil of `ratio x total` are taken of the ratio as it is written: 0.29 of 100 is
29 though the nearest float64 is below it. A number from Python is read as the fraction with the
shortest decimal form, exactly; a ratio drawn on the device is allowed one rounding step of its
own type.

**Schedules.** Backbones hide a share of the latent cells that they draw afresh: MAR models from a
normal distribution cut to its lower half, discrete ones from a cosine.

No function waits for the device.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from torch import Tensor

    from segros_train.types import Grid

__all__ = [
    "bottom_indices",
    "bottom_mask",
    "cosine_ratio",
    "descending_ranks",
    "floor_count",
    "floor_counts",
    "indices_to_mask",
    "mask_to_indices",
    "num_masked",
    "random_mask",
    "resample_scores",
    "top_indices",
    "top_mask",
    "truncated_normal_ratio",
]


def floor_count(ratio: float, total: int) -> int:
    """Return floor(ratio x total), with `ratio` read as the decimal it is written as."""
    return math.floor(_written(ratio) * total)


def floor_counts(ratio: float, totals: Tensor) -> Tensor:
    """Return floor(ratio x total) for each total, with `ratio` read as the decimal it is written as.

    Args:
        ratio: Share in [0, 1].
        totals: [B] long.

    Returns:
        [B] long.
    """
    written = _written(ratio)
    return totals * written.numerator // written.denominator


def num_masked(masking_ratio: Tensor, num_cells: int) -> Tensor:
    """Return how many cells to hide: ceil(ratio x cells), at least 1 since a loss over nothing is undefined.

    Args:
        masking_ratio: [B] floating shares in [0, 1].
        num_cells: M.

    Returns:
        [B] long in [1, M].
    """
    rounding = num_cells * torch.finfo(masking_ratio.dtype).eps
    return (masking_ratio.double() * num_cells - rounding).ceil().long().clamp(1, num_cells)


def descending_ranks(scores: Tensor) -> Tensor:
    """Return the place of each score in its row's order, 0 for the highest, equals by index.

    Args:
        scores: [B, N].

    Returns:
        [B, N] long, each row a permutation of 0..N-1.
    """
    return scores.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)


def top_mask(scores: Tensor, counts: Tensor | int) -> Tensor:
    """Mark the highest scores of each row.

    Args:
        scores: [B, N].
        counts: [B] long, or one number for all rows.

    Returns:
        [B, N] bool with `counts` True per row.
    """
    return descending_ranks(scores) < _per_row(counts)


def bottom_mask(scores: Tensor, counts: Tensor | int) -> Tensor:
    """Mark the lowest scores of each row, the tail of the order whose head is `top_mask`.

    Args:
        scores: [B, N].
        counts: [B] long, or one number for all rows.

    Returns:
        [B, N] bool with `counts` True per row.
    """
    return descending_ranks(scores) >= scores.shape[-1] - _per_row(counts)


def top_indices(scores: Tensor, count: int) -> Tensor:
    """Return the indices of the `count` highest scores of each row, [B, count] long, ascending (raster order)."""
    return mask_to_indices(top_mask(scores, count), count=count)


def bottom_indices(scores: Tensor, count: int) -> Tensor:
    """Return the indices of the `count` lowest scores of each row, [B, count] long, ascending (raster order)."""
    return mask_to_indices(bottom_mask(scores, count), count=count)


def random_mask(masking_ratio: Tensor, uniform: Tensor) -> Tensor:
    """Hide cells without regard to what they show.

    Args:
        masking_ratio: [B] floating shares in [0, 1].
        uniform: [B, M] draws, uniform in [0, 1), on the device where the mask is wanted.

    Returns:
        [B, M] bool, True on ceil(ratio x M) cells per row.
    """
    return top_mask(uniform, num_masked(masking_ratio.to(uniform.device), uniform.shape[-1]))


def indices_to_mask(indices: Tensor, total: int) -> Tensor:
    """Mark the indexed places: [B, K] long in [0, total) to [B, total] bool."""
    mask = torch.zeros(indices.shape[0], total, dtype=torch.bool, device=indices.device)
    return mask.scatter(1, indices, True)


def mask_to_indices(mask: Tensor, *, count: int) -> Tensor:
    """Return the marked places of each row, ascending.

    Args:
        mask: [B, N] bool with the same number of True in every row.
        count: That number; given, because reading it off the mask would wait for the device.

    Returns:
        [B, count] long.
    """
    return mask.byte().argsort(dim=-1, descending=True, stable=True)[:, :count]


def resample_scores(scores: Tensor, source: Grid, target: Grid) -> Tensor:
    """Carry scores from one grid over the image to another; the same grid returns them as they are.

    Bilinear, with the filter widened where the target is coarser, so that every source cell counts.

    Args:
        scores: [B, N] in raster order of `source`.
        source: Rows and columns of the N scores.
        target: Rows and columns of the M wanted.

    Returns:
        [B, M] float32 in raster order of `target`, or `scores` itself.
    """
    if source == target:
        return scores
    image = scores.float().unflatten(-1, source).unsqueeze(1)
    resized = F.interpolate(image, size=target, mode="bilinear", align_corners=False, antialias=True)
    return resized.flatten(1)


def truncated_normal_ratio(uniform: Tensor, *, minimum: float, deviation: float = 0.25) -> Tensor:
    """Turn uniform draws into masking ratios: normal around 1, cut to [minimum, 1].

    Args:
        uniform: [B] floating in [0, 1).
        minimum: Smallest ratio.
        deviation: Of the normal distribution; 0.25 upstream.

    Returns:
        [B] float64.

    Source: wusize/Harmon src/models/mar/mar.py @ 4eb60876
    """
    lowest = torch.special.ndtr(torch.tensor((minimum - 1) / deviation, dtype=torch.float64)).item()
    quantile = lowest + uniform.double() * (0.5 - lowest)
    return (1 + deviation * torch.special.ndtri(quantile)).clamp(minimum, 1)


def cosine_ratio(uniform: Tensor) -> Tensor:
    """Turn uniform draws [B] into masking ratios cos(pi/2 u).

    Source: the cosine schedule of MaskGIT, kept by Show-o.
    """
    return torch.cos(uniform * (math.pi / 2))


def _written(ratio: float) -> Fraction:
    """Return the fraction a float was written as; a millionth is finer than any share of patches."""
    return Fraction(repr(float(ratio))).limit_denominator(1_000_000)


def _per_row(counts: Tensor | int) -> Tensor | int:
    return counts if isinstance(counts, int) else counts.unsqueeze(-1)
