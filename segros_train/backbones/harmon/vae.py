"""The KL autoencoder of latent diffusion, between pixels and latent cells.

Levels are numbered from the pixels inwards. Key names are those of the published `kl16.ckpt`.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segros_train.backbones.harmon.config import VaeConfig

__all__ = ["AutoencoderKL", "Downsample", "Grouped", "Level", "Middle", "Upsample"]

LOGVAR_RANGE = (-30.0, 20.0)


class Grouped(Protocol):
    """A configuration with a number of groups per normalisation."""

    @property
    def num_groups(self) -> int:
        """Groups of every GroupNorm."""
        ...


def _norm(config: Grouped, channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(config.num_groups, channels, eps=1e-6)


class ResBlock(nn.Module):
    """Two normalised convolutions with a shortcut."""

    def __init__(self, config: Grouped, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm1 = _norm(config, inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2 = _norm(config, outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        if inputs != outputs:
            self.nin_shortcut = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class AttnBlock(nn.Module):
    """Single-head attention over all positions of a feature map."""

    def __init__(self, config: Grouped, channels: int) -> None:
        super().__init__()
        self.norm = _norm(config, channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (part(h).flatten(2).transpose(1, 2).unsqueeze(1) for part in (self.q, self.k, self.v))
        h = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj_out(h.squeeze(1).transpose(1, 2).unflatten(2, x.shape[2:]))


class Downsample(nn.Module):
    """Halve the resolution; the padding lies right and below only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Double the resolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """The blocks of one resolution, attention after each where the level has it."""

    def __init__(self, config: Grouped, inputs: int, outputs: int, *, num_blocks: int, attention: bool) -> None:
        super().__init__()
        widths = [inputs, *[outputs] * num_blocks]
        self.block = nn.ModuleList(ResBlock(config, a, b) for a, b in zip(widths, widths[1:], strict=False))
        self.attn = nn.ModuleList(AttnBlock(config, outputs) for _ in range(num_blocks if attention else 0))

    def blocks(self, x: Tensor) -> Tensor:
        """Run the level's blocks on [B, C, h, w], without its change of resolution."""
        for index, block in enumerate(self.block):
            x = block(x)
            if len(self.attn):
                x = self.attn[index](x)
        return x


class Middle(nn.Module):
    """Residual, attention and residual block at the lowest resolution."""

    def __init__(self, config: Grouped, channels: int) -> None:
        super().__init__()
        self.block_1 = ResBlock(config, channels, channels)
        self.attn_1 = AttnBlock(config, channels)
        self.block_2 = ResBlock(config, channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Encoder(nn.Module):
    """Pixels to the moments of the latent distribution."""

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        widths = [config.ch * multiple for multiple in (1, *config.ch_mult)]
        self.conv_in = nn.Conv2d(3, config.ch, 3, padding=1)
        self.down = nn.ModuleList()
        for level, (inputs, outputs) in enumerate(zip(widths, widths[1:], strict=False)):
            attention = level in config.encoder_attention_levels
            part = Level(config, inputs, outputs, num_blocks=config.num_res_blocks, attention=attention)
            if level < len(config.ch_mult) - 1:
                part.downsample = Downsample(outputs)
            self.down.append(part)
        self.mid = Middle(config, widths[-1])
        self.norm_out = _norm(config, widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], 2 * config.embed_dim, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down:
            x = level.blocks(x)
            if hasattr(level, "downsample"):
                x = level.downsample(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    """Latents to pixels."""

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        widths = [config.ch * multiple for multiple in config.ch_mult]
        inner = [*widths[1:], widths[-1]]
        self.conv_in = nn.Conv2d(config.embed_dim, widths[-1], 3, padding=1)
        self.mid = Middle(config, widths[-1])
        self.up = nn.ModuleList()
        for level, (inputs, outputs) in enumerate(zip(inner, widths, strict=True)):
            attention = level in config.decoder_attention_levels
            part = Level(config, inputs, outputs, num_blocks=config.num_res_blocks + 1, attention=attention)
            if level > 0:
                part.upsample = Upsample(outputs)
            self.up.append(part)
        self.norm_out = _norm(config, widths[0])
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            x = level.blocks(x)
            if hasattr(level, "upsample"):
                x = level.upsample(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class AutoencoderKL(nn.Module):
    """Map images to latent cells and back.

    Latents here are the autoencoder's own: the factor `HarmonConfig.vae_scale` between them and what the
    rest of the model reads is the caller's.
    """

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quant_conv = nn.Conv2d(2 * config.embed_dim, 2 * config.embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(config.embed_dim, config.embed_dim, 1)

    def moments(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance of the latent distribution.

        Args:
            images: [B, 3, height, width] in [-1, 1].

        Returns:
            Two tensors [B, C, h, w]; the log-variance is clamped to [-30, 20].
        """
        mean, logvar = self.quant_conv(self.encoder(images)).chunk(2, dim=1)
        return mean, torch.clamp(logvar, *LOGVAR_RANGE)

    def encode(self, images: Tensor) -> Tensor:
        """Return the most likely latents [B, h, w, C], not scaled, of images [B, 3, height, width] in [-1, 1]."""
        return self.moments(images)[0].permute(0, 2, 3, 1)

    def decode(self, latents: Tensor) -> Tensor:
        """Return images [B, 3, height, width] of latents [B, h, w, C], not scaled; in about [-1, 1], not clamped."""
        return self.decoder(self.post_quant_conv(latents.permute(0, 3, 1, 2)))
