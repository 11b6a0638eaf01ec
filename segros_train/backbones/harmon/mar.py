"""The masked autoregressive encoder and decoder over latent cells.

The encoder reads the visible cells behind a few learned buffer tokens; the decoder reads its outputs, as the
language model has changed them, among mask tokens at the hidden cells. Learned positions belong to a base
grid and are interpolated to any other.

Source: wusize/Harmon src/models/mar/mar.py @ 4eb60876
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segros_train.backbones.common.recompute import residual_stream, run_blocks
from segros_train.backbones.harmon.config import MarConfig
from segros_train.backbones.harmon.diffusion import DiffusionHead
from segros_train.equations import corrupted_latents
from segros_train.masking import indices_to_mask

__all__ = ["Mar", "Positions", "gather_rows"]

NORM_EPS = 1e-6


def gather_rows(rows: Tensor, indices: Tensor) -> Tensor:
    """Return rows [B, K, D] of `rows` [B, N, D] at `indices` [B, K]."""
    return rows.gather(1, indices.unsqueeze(-1).expand(-1, -1, rows.shape[-1]))


@dataclass(frozen=True)
class Positions:
    """The learned positions at one grid of N cells, buffers first.

    Attributes:
        encoder: [buffers + N, encoder width].
        decoder: [buffers + N, decoder width].
        diffusion: [N, decoder width].
    """

    encoder: Tensor
    decoder: Tensor
    diffusion: Tensor


class Attention(nn.Module):
    """Multi-head attention without a mask."""

    def __init__(self, config: MarConfig, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = config.attention_dropout
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.proj_drop = nn.Dropout(config.projection_dropout)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        h = F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout if self.training else 0.0)
        return self.proj_drop(self.proj(h.transpose(1, 2).flatten(2)))


class Mlp(nn.Module):
    """Two linear layers around a GELU."""

    def __init__(self, config: MarConfig, width: int) -> None:
        super().__init__()
        hidden = int(width * config.mlp_ratio)
        self.fc1 = nn.Linear(width, hidden)
        self.drop = nn.Dropout(config.projection_dropout)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(self.drop(F.gelu(self.fc1(x)))))


class Block(nn.Module):
    """A transformer block with normalisation before each part."""

    def __init__(self, config: MarConfig, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.attn = Attention(config, width, heads)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = Mlp(config, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Mar(nn.Module):
    """Encode visible cells and decode a condition for every cell.

    Attributes:
        recompute: Whether the backward pass computes the blocks again instead of keeping what they hold.
    """

    def __init__(self, config: MarConfig, *, channels: int) -> None:
        super().__init__()
        self.config = config
        self.recompute = False
        num_cells = config.base_grid[0] * config.base_grid[1]
        wide, narrow = config.encoder_width, config.decoder_width
        self.fake_latent = nn.Parameter(torch.zeros(1, wide))
        self.encoder_pos_embed_learned = nn.Parameter(torch.zeros(1, config.buffer_size + num_cells, wide))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, narrow))
        self.decoder_pos_embed_learned = nn.Parameter(torch.zeros(1, config.buffer_size + num_cells, narrow))
        self.diffusion_pos_embed_learned = nn.Parameter(torch.zeros(1, num_cells, narrow))
        self.class_emb = nn.Embedding(config.num_classes, wide).requires_grad_(False)
        self.z_proj = nn.Linear(channels, wide)
        self.z_proj_ln = nn.LayerNorm(wide, eps=NORM_EPS)
        self.encoder_blocks = nn.ModuleList(
            Block(config, wide, config.encoder_heads) for _ in range(config.encoder_depth)
        )
        self.encoder_norm = nn.LayerNorm(wide, eps=NORM_EPS)
        self.decoder_embed = nn.Linear(wide, narrow)
        self.decoder_blocks = nn.ModuleList(
            Block(config, narrow, config.decoder_heads) for _ in range(config.decoder_depth)
        )
        self.decoder_norm = nn.LayerNorm(narrow, eps=NORM_EPS)
        self.diffloss = DiffusionHead(config.diffusion, channels=channels, condition_width=narrow)

    def positions(self, grid: tuple[int, int]) -> Positions:
        """Return the learned positions at `grid`, rows and columns."""
        buffers = self.config.buffer_size
        return Positions(
            encoder=self._at_grid(self.encoder_pos_embed_learned[0], grid, buffers),
            decoder=self._at_grid(self.decoder_pos_embed_learned[0], grid, buffers),
            diffusion=self._at_grid(self.diffusion_pos_embed_learned[0], grid, 0),
        )

    def _at_grid(self, learned: Tensor, grid: tuple[int, int], buffers: int) -> Tensor:
        if grid == tuple(self.config.base_grid):
            return learned
        image = learned[buffers:].unflatten(0, self.config.base_grid).permute(2, 0, 1).unsqueeze(0)
        image = F.interpolate(image, size=grid, mode="bilinear")
        return torch.cat([learned[:buffers], image[0].flatten(1).transpose(0, 1)])

    def _run(self, blocks: nn.ModuleList, x: Tensor) -> Tensor:
        return run_blocks(blocks, residual_stream(x), recompute=self.recompute)

    def encode(self, cells: Tensor, visible: Tensor | None, positions: Positions) -> Tensor:
        """Encode the visible cells.

        Args:
            cells: [B, N, C] latents in raster order.
            visible: [B, V] long, ascending indices of the visible cells; None for all of them.
            positions: The learned positions at the cells' grid.

        Returns:
            [B, buffers + V, encoder width], buffers first.
        """
        buffers = self.config.buffer_size
        places = positions.encoder[buffers:]
        if visible is not None:
            cells, places = gather_rows(cells, visible), places[visible]
        image = self.z_proj(cells) + places
        learned = (self.fake_latent + positions.encoder[:buffers]).expand(len(cells), -1, -1)
        x = self.z_proj_ln(torch.cat([learned, image], dim=1))
        return self.encoder_norm(self._run(self.encoder_blocks, x))

    def decode(self, x: Tensor, visible: Tensor | None, positions: Positions) -> Tensor:
        """Return conditions [B, N, decoder width] of all cells.

        Args:
            x: [B, buffers + V, encoder width], buffers first.
            visible: [B, V] long, ascending indices of the visible cells; None for all of them.
            positions: The learned positions at the cells' grid.
        """
        buffers = self.config.buffer_size
        x = self.decoder_embed(x)
        if visible is not None:
            num_cells = positions.diffusion.shape[0]
            indices = visible.unsqueeze(-1).expand(-1, -1, x.shape[-1])
            cells = x.new_zeros(len(x), num_cells, x.shape[-1]).scatter(1, indices, x[:, buffers:])
            masked = ~indices_to_mask(visible, num_cells)
            x = torch.cat([x[:, :buffers], corrupted_latents(cells, masked, self.mask_token)], dim=1)
        x = self._run(self.decoder_blocks, x + positions.decoder)
        return self.decoder_norm(x)[:, buffers:] + positions.diffusion
