r"""Deformable attention on a CPU as one weighted sum of gathered rows.

A query looks at P points of each of L levels, for each of its heads: with weights $a_{lp}$ summing to 1 it takes
$\sum_{lp} a_{lp} V_l(x_{lp})$, where $V_l(x)$ is the level's value at a point between cells, bilinear and zero outside.
A bilinear value is itself a weighted sum of four cells, so that the whole is a sum of 4 L P rows of values with weights
that are products; `embedding_bag` computes such sums many times faster than sampling each level as an image does.
Levels get a border of zeros, and points are held to it, so that no point needs a case of its own.

Source: Zhu et al. 2020, Deformable DETR, equation (3); the same function as in transformers, to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers.models.mask2former.modeling_mask2former import (
    Mask2FormerPixelDecoderEncoderMultiscaleDeformableAttention as SampledAttention,
)

__all__ = ["GatheredAttention", "SampledAttention", "attend"]


class GatheredAttention(SampledAttention):
    """The attention of transformers' pixel decoder, which on a CPU gathers instead of sampling."""

    @classmethod
    def like(cls, other: Any) -> GatheredAttention:
        """Return one of the sizes of another, a `SampledAttention`."""
        return cls(other.d_model, other.n_heads, other.n_levels, other.n_points)

    def forward(self, hidden_states: Tensor, *arguments: Any, **named: Any) -> tuple[Tensor, Tensor | None]:
        """Attend; arguments and result are those of transformers, the weights being left out on a CPU.

        Args:
            hidden_states: [B, Q, D].
            *arguments: As transformers takes them.
            **named: The same, `encoder_hidden_states`, `position_embeddings`, `reference_points` [B, Q, L, 2] in
                0..1 and `spatial_shapes_list` among them. There is no padding that a mask would hide.
        """
        if arguments or hidden_states.device.type != "cpu":
            attended: tuple[Tensor, Tensor | None] = super().forward(hidden_states, *arguments, **named)
            return attended
        shapes: Sequence[tuple[int, int]] = named["spatial_shapes_list"]
        queries = hidden_states + named["position_embeddings"]
        heads, levels, points = self.n_heads, self.n_levels, self.n_points
        values = self.value_proj(named["encoder_hidden_states"]).unflatten(-1, (heads, -1))
        weights = self.attention_weights(queries).unflatten(-1, (heads, -1)).softmax(-1)
        offsets = self.sampling_offsets(queries).unflatten(-1, (heads, levels, points, 2))
        # A point in cells: the centre of the first cell lies at 0, and offsets are in cells already.
        sides = queries.new_tensor([(width, height) for height, width in shapes])
        centres = named["reference_points"] * sides - 0.5
        places = offsets.add_(centres[:, :, None, :, None, :])
        return self.output_proj(attend(values, places, weights.unflatten(-1, (levels, points)), shapes=shapes)), None


def attend(values: Tensor, places: Tensor, weights: Tensor, *, shapes: Sequence[tuple[int, int]]) -> Tensor:
    """Return the weighted sums of values at points between cells, [B, Q, N D].

    Args:
        values: [B, cells of all levels, N, D] for N heads.
        places: [B, Q, N, L, P, 2] x and y in cells of the level.
        weights: [B, Q, N, L, P].
        shapes: Height and width of each level.
    """
    num_images, _, num_heads, width_of_head = values.shape
    # One cell of zeros before, two behind: a point at the far border has a neighbour behind it.
    levels = [
        functional.pad(level.permute(0, 2, 1, 3).reshape(-1, height, width, width_of_head), (0, 0, 1, 2, 1, 2))
        for level, (height, width) in zip(values.split([h * w for h, w in shapes], 1), shapes, strict=True)
    ]
    rows = torch.cat([level.flatten(1, 2) for level in levels], dim=1)
    far = places.new_tensor([(width, height) for height, width in shapes])[:, None]
    held = places.clamp(min=-1).minimum(far)
    near = held.floor()
    right, below = (held - near).unbind(-1)
    column, row = near.to(torch.int32).unbind(-1)

    def numbers(found: Sequence[int]) -> Tensor:
        return torch.tensor(found, dtype=torch.int32)[:, None]

    strides = numbers([width + 3 for _, width in shapes])
    sizes = [level.shape[1] * level.shape[2] for level in levels]
    starts = numbers([0, *accumulate(sizes[:-1])]) + strides + 1
    maps = torch.arange(num_images * num_heads, dtype=torch.int32).view(num_images, 1, num_heads, 1, 1)
    corner = row * strides + column + (maps * sum(sizes) + starts)
    corners = torch.stack([corner, corner + 1, corner + strides, corner + strides + 1], dim=-1)
    lower = weights * below
    upper = weights - lower
    upper_right, lower_right = upper * right, lower * right
    shares = torch.stack([upper - upper_right, upper_right, lower - lower_right, lower_right], dim=-1)
    sums = functional.embedding_bag(
        corners.flatten(0, 2).flatten(1),
        rows.flatten(0, 1),
        mode="sum",
        per_sample_weights=shares.flatten(0, 2).flatten(1),
    )
    return sums.view(num_images, -1, num_heads * width_of_head)
