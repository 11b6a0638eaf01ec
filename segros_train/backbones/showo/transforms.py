"""Preparation of images for Show-o: the shorter side to the model's size, then the middle square.

The two paths round differently, as their originals do.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Generator, Tensor

__all__ = ["CropForClip", "CropToSquare"]


def _middle(image: Image.Image, size_px: int, *, half_up: bool) -> Tensor:
    """Return [3, size, size] float32 in [-1, 1] of the middle of an image, resized bicubically."""
    short, long = sorted(image.size)
    longer = int(size_px * long / short)
    width, height = (size_px, longer) if image.width <= image.height else (longer, size_px)
    resized = image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
    left, top = (
        int(round((extent - size_px) / 2)) if half_up else (extent - size_px) // 2 for extent in (width, height)
    )
    square = resized.crop((left, top, left + size_px, top + size_px))
    return torch.from_numpy(np.array(square)).permute(2, 0, 1).float() / 255 * 2 - 1


@dataclass(frozen=True)
class CropToSquare:
    """Prepare an image for the tokenizer of images.

    Source: showlab/Show-o training/utils.py (image_transform) @ 45a5a2de
    """

    size_px: int

    def __call__(self, image: Image.Image, rng: Generator | None = None) -> Tensor:
        """Return [3, size, size] float32 in [-1, 1]; nothing is drawn."""
        return _middle(image, self.size_px, half_up=True)


@dataclass(frozen=True)
class CropForClip:
    """Prepare an image for the vision tower, which normalises it itself.

    Source: openai/clip-vit-large-patch14-336, preprocessor_config.json
    """

    size_px: int

    def __call__(self, image: Image.Image, rng: Generator | None = None) -> Tensor:
        """Return [3, size, size] float32 in [-1, 1]; nothing is drawn."""
        return _middle(image, self.size_px, half_up=False)
