"""Preparation of images that families of backbones share: squares of pixels, and back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Generator, Tensor

__all__ = ["CropToSquare", "decoded", "to_images", "to_pixels"]

DECODED_PX = 4 * 512**2
"""Pixels that an autoencoder decodes at once: more make it no faster, and each takes hundreds of numbers."""


def to_pixels(image: Image.Image, size_px: int) -> Tensor:
    """Return a square RGB image as [3, size, size] float32 in [-1, 1], resized bicubically."""
    resized = image.resize((size_px, size_px), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1).float() / 255 * 2 - 1


def to_images(pixels: Tensor) -> list[Image.Image]:
    """Return RGB images of pixels [B, 3, height, width], about [-1, 1]; values are cut, not rounded.

    Source: wusize/Harmon scripts/text2image.py @ 4eb60876; wusize/OpenUni scripts/evaluation @ d1703fc
    """
    levels = torch.clamp(127.5 * pixels.float() + 128.0, 0, 255).to("cpu", torch.uint8)
    return [Image.fromarray(level.permute(1, 2, 0).numpy()) for level in levels]


def decoded(
    latents: Tensor,
    decode: Callable[[Tensor], Tensor],
    *,
    size_px: int,
    images: Callable[[Tensor], list[Image.Image]] = to_images,
) -> list[Image.Image]:
    """Return the images of latents, decoded a few at a time.

    Args:
        latents: [B, ...].
        decode: Return the pixels [b, 3, size, size] of some latents.
        size_px: Side of an image.
        images: Return the images of pixels.
    """
    num_at_once = max(1, DECODED_PX // size_px**2)
    return [image for part in latents.split(num_at_once) for image in images(decode(part))]


@dataclass(frozen=True)
class CropToSquare:
    """Take a random square as large as the image allows."""

    size_px: int

    def __call__(self, image: Image.Image, rng: Generator) -> Tensor:
        """Return [3, size, size] float32 in [-1, 1]."""
        side = min(image.size)
        left, top = (int(torch.randint(extent - side + 1, (), generator=rng)) for extent in image.size)
        return to_pixels(image.convert("RGB").crop((left, top, left + side, top + side)), self.size_px)
