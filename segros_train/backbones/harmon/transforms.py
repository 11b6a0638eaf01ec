"""Preparation of images for Harmon."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image
from torch import Generator, Tensor

from segros_train.backbones.common.images import CropToSquare, to_images, to_pixels

__all__ = ["CropToSquare", "PadToSquare", "to_images", "to_pixels"]

PADDING_COLOUR = (127, 127, 127)


@dataclass(frozen=True)
class PadToSquare:
    """Centre the image on a grey square."""

    size_px: int

    def __call__(self, image: Image.Image, rng: Generator | None = None) -> Tensor:
        """Return [3, size, size] float32 in [-1, 1]."""
        side = max(image.size)
        square = Image.new("RGB", (side, side), PADDING_COLOUR)
        square.paste(image.convert("RGB"), ((side - image.width) // 2, (side - image.height) // 2))
        return to_pixels(square, self.size_px)
