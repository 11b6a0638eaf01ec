"""MAGVIT-v2: a convolutional autoencoder whose latent cells are signs, hence codes.

A cell's latent z in R^b is quantised to its signs q in {-1, +1}^b (zero counts as -1); the code is the number whose
binary digits they are, channel 0 first. Levels are numbered from the pixels inwards. Key names are upstream's.

Source: showlab/Show-o models/modeling_magvitv2.py @ 45a5a2de
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segros_train.backbones.harmon.vae import Downsample, Level, Middle, Upsample
from segros_train.backbones.showo.config import VqConfig

__all__ = ["MagvitV2", "Quantizer", "entropy_penalty"]


def entropy_penalty(z: Tensor) -> Tensor:
    """Return how undecided single bits are, less how varied they are over the batch; a scalar.

    Args:
        z: [B, b, h, w] latents.

    Source: showlab/Show-o models/modeling_magvitv2.py (LFQuantizer) @ 45a5a2de
    """
    logits = torch.stack([-((z - 1) ** 2), -((z + 1) ** 2)], dim=-1)
    logp = logits.float().log_softmax(dim=-1)
    sample = -(logp.exp() * logp).sum(dim=-1).mean()
    mean = logp.exp().mean(dim=(0, 2, 3))
    return sample + (mean * mean.log()).sum(dim=-1).mean()


class Encoder(nn.Module):
    """Pixels to latents."""

    def __init__(self, config: VqConfig) -> None:
        super().__init__()
        widths = [config.ch * multiple for multiple in (1, *config.encoder_mult)]
        self.conv_in = nn.Conv2d(3, config.ch, 3, padding=1)
        self.down = nn.ModuleList()
        for level, num_blocks in enumerate(config.encoder_blocks):
            part = Level(config, widths[level], widths[level + 1], num_blocks=num_blocks, attention=False)
            if level < len(config.encoder_blocks) - 1:
                part.downsample = Downsample(widths[level + 1])
            self.down.append(part)
        self.mid = Middle(config, widths[-1])
        self.norm_out = nn.GroupNorm(config.num_groups, widths[-1], eps=1e-6)
        self.conv_out = nn.Conv2d(widths[-1], config.num_bits, 3, padding=1)
        self.quant_conv = nn.Conv2d(config.num_bits, config.num_bits, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down:
            x = level.blocks(x)
            if hasattr(level, "downsample"):
                x = level.downsample(x)
        return self.quant_conv(self.conv_out(F.silu(self.norm_out(self.mid(x)))))


class Decoder(nn.Module):
    """Signs to pixels."""

    def __init__(self, config: VqConfig) -> None:
        super().__init__()
        widths = [config.ch * multiple for multiple in config.decoder_mult]
        inputs = [*widths[1:], widths[-1]]
        self.post_quant_conv = nn.Conv2d(config.num_bits, config.num_bits, 1)
        self.conv_in = nn.Conv2d(config.num_bits, widths[-1], 3, padding=1)
        self.mid = Middle(config, widths[-1])
        self.up = nn.ModuleList()
        for level, num_blocks in enumerate(config.decoder_blocks):
            part = Level(config, inputs[level], widths[level], num_blocks=num_blocks, attention=False)
            if level > 0:
                part.upsample = Upsample(widths[level])
            self.up.append(part)
        self.norm_out = nn.GroupNorm(config.num_groups, widths[0], eps=1e-6)
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid(self.conv_in(self.post_quant_conv(x)))
        for level in reversed(self.up):
            x = level.blocks(x)
            if hasattr(level, "upsample"):
                x = level.upsample(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class Quantizer(nn.Module):
    """The codebook, which the number of bits determines; checkpoints hold it."""

    embedding: Tensor
    power_vals: Tensor

    def __init__(self, num_bits: int) -> None:
        super().__init__()
        powers = 2 ** torch.arange(num_bits - 1, -1, -1, device="cpu")
        codes = torch.arange(2**num_bits, device="cpu").unsqueeze(1)
        self.register_buffer("embedding", (codes // powers % 2 * 2 - 1).float())
        self.register_buffer("power_vals", powers)

    def codes(self, z: Tensor) -> Tensor:
        """Return the codes [B, h, w] of latents [B, b, h, w]."""
        return ((z > 0).long() * self.power_vals.view(-1, 1, 1)).sum(dim=1)

    def signs(self, codes: Tensor) -> Tensor:
        """Return the signs [B, b, h, w] of codes [B, h, w]."""
        return self.embedding[codes].permute(0, 3, 1, 2)


class MagvitV2(nn.Module):
    """Pixels to codes and back."""

    def __init__(self, config: VqConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quantize = Quantizer(config.num_bits)

    def latents(self, images: Tensor) -> Tensor:
        """Return latents [B, b, h, w] before quantisation of images [B, 3, height, width] in [-1, 1]."""
        return self.encoder(images)

    def encode(self, images: Tensor) -> Tensor:
        """Return the codes [B, h, w] of images [B, 3, height, width] in [-1, 1]."""
        return self.quantize.codes(self.latents(images))

    def decode(self, codes: Tensor) -> Tensor:
        """Return images [B, 3, height, width], about [-1, 1], of codes [B, h, w]."""
        return self.decoder(self.quantize.signs(codes))

    @staticmethod
    def quantised(z: Tensor) -> Tensor:
        """Return the signs of latents, with the gradient of the latents themselves."""
        signs = torch.where(z > 0, torch.ones_like(z), -torch.ones_like(z))
        return z + (signs - z).detach()

    def losses(self, z: Tensor) -> Sequence[Tensor]:
        """Return upstream's weighted quantiser loss and entropy penalty of latents [B, b, h, w], a scalar each."""
        signs = self.quantised(z).detach()
        return 0.125 * F.mse_loss(z, signs), 0.1 * entropy_penalty(z)
