"""The backbone on a CPU: windows are gathered by one index, and wide layers go a block of rows at a time.

A block of Swin attends within windows of w x w cells, every second time shifted by half a window. transformers pads
the map, shifts it, cuts it up, projects, attends, and undoes all of it. Here queries, keys and values are computed of
the cells that there are, and one index per size of map carries each cell to its place in its window and back; a cell
of padding is zero before the projection and so the projection's bias behind it. What is wide (the windows' scores, the
inside of an MLP) is made a block at a time, so that it stays in the caches instead of in fresh pages of memory.

Source: Liu et al. 2021, Swin Transformer; the same function as in transformers, to rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["ROWS_AT_ONCE", "Windows", "swin_features", "windows"]

ROWS_AT_ONCE = 1024
_MASKED = -100.0


@dataclass(frozen=True)
class Windows:
    """Where the T = height x width cells of a map lie in its W windows of w x w places.

    Attributes:
        cells: [W w w] cell of each place, 0 at a place of padding.
        blanks: [W w w] bool, the places of padding.
        places: [T] place of each cell.
        hidden: [W, w w, w w] what is added to scores of a shifted map, where a window holds cells of several sides.
    """

    cells: Tensor
    blanks: Tensor
    places: Tensor
    hidden: Tensor | None


def swin_features(backbone: Any, pixels: Tensor) -> list[Tensor]:
    """Return the normalised maps of the stages, [B, height, width, D] each, the finest first.

    Args:
        backbone: A `SwinBackbone` of transformers that gives out every stage.
        pixels: [B, 3, height, width], sides multiples of the patches'.
    """
    swin = backbone.swin
    states = swin.embeddings.norm(swin.embeddings.patch_embeddings.projection(pixels).permute(0, 2, 3, 1))
    found = []
    for norm, stage in zip(backbone.hidden_states_norms.values(), swin.encoder.layers, strict=True):
        size = states.shape[1:3]
        for block in stage.blocks:
            states = _through(block, states)
        found.append(norm(states))
        if stage.downsample is not None:
            merged = stage.downsample(states.flatten(1, 2), size)
            states = merged.unflatten(1, tuple((side + 1) // 2 for side in size))
    return found


@lru_cache(maxsize=32)
@torch.inference_mode(mode=False)
def windows(height: int, width: int, *, side: int, shift: int) -> Windows:
    """Return where the cells of a map lie in its windows.

    Args:
        height: Of the map, in cells; it is padded behind to whole windows.
        width: Likewise.
        side: Of a window, in cells.
        shift: Cells by which the padded map is turned up and left, from 0 to less than a window.
    """
    rows, columns = (-(-length // side) for length in (height, width))

    def cut(grid: Tensor) -> Tensor:
        turned = grid.roll((-shift, -shift), (0, 1)).view(rows, side, columns, side)
        return turned.transpose(1, 2).reshape(rows * columns, side * side)

    grid = torch.full((rows * side, columns * side), -1)
    grid[:height, :width] = torch.arange(height * width).view(height, width)
    cells = cut(grid).flatten()
    blanks = cells < 0
    places = torch.empty(height * width, dtype=torch.int64)
    places[cells[~blanks]] = torch.arange(len(cells))[~blanks]
    hidden = None
    if shift:
        # Turned, the first `shift` rows lie behind the last: they are another side, and so are columns.
        lower, right = torch.zeros(2, *grid.shape, dtype=torch.int64)
        lower[:shift], right[:, :shift] = 2, 1
        sides = cut(lower + right)
        hidden = _MASKED * (sides[:, :, None] != sides[:, None, :]).float()
    return Windows(cells.clamp(min=0), blanks, places, hidden)


def _through(block: Any, states: Tensor) -> Tensor:
    """Return [B, height, width, D] behind one block."""
    num_images, height, width, _ = states.shape
    where = windows(height, width, side=block.window_size, shift=block.shift_size)
    rows = states.reshape(num_images * height * width, -1)
    attended = _attended(block.attention, block.layernorm_before(rows).unflatten(0, (num_images, -1)), where)
    rows = rows + block.attention.o_proj(attended.flatten(0, 1))
    for part in rows.split(ROWS_AT_ONCE):
        part += block.mlp(block.layernorm_after(part))
    return rows.view_as(states)


def _attended(attention: Any, cells: Tensor, where: Windows) -> Tensor:
    """Return what each of [B, T, D] cells takes from its window, before the output's projection."""
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    bias = torch.cat([projection.bias for projection in projections])
    weight = torch.cat([projection.weight for projection in projections])
    table = attention.relative_position_bias()
    num_places = table.shape[-1]
    at_once = max(1, ROWS_AT_ONCE // num_places) * num_places
    found = []
    for of_image in functional.linear(cells, weight, bias):
        parts = []
        for start in range(0, len(where.cells), at_once):
            part = slice(start, start + at_once)
            taken = of_image.index_select(0, where.cells[part])
            taken[where.blanks[part]] = bias
            split = taken.view(-1, num_places, 3, attention.num_attention_heads, attention.head_dim)
            query, key, value = split.permute(2, 0, 3, 1, 4)
            scores = table
            if where.hidden is not None:
                scores = table + where.hidden[start // num_places : (start + at_once) // num_places, None]
            mixed = functional.scaled_dot_product_attention(query, key, value, scores, scale=attention.scaling)
            parts.append(mixed.transpose(1, 2).reshape(len(taken), -1))
        found.append(torch.cat(parts).index_select(0, where.places))
    return torch.stack(found)
