"""Reading an image whole, or saying why it cannot be read."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

from PIL import Image, ImageOps

__all__ = ["UnreadableImageError", "read_image"]


class UnreadableImageError(Exception):
    """Say that a file is no whole image."""


UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
"""What Pillow raises for files that are damaged, or no images."""


def read_image(source: Path | Image.Image) -> Image.Image:
    """Read an image whole, as RGB with its EXIF rotation applied.

    Args:
        source: Path of an image file, or an image that may not have been decoded yet.

    Raises:
        UnreadableImageError: If the file is missing, truncated, damaged or no image.
    """
    try:
        if isinstance(source, Image.Image):
            return _decoded(source)
        with Image.open(source) as image:
            return _decoded(image)
    except FileNotFoundError as error:
        raise UnreadableImageError(f"{source} does not exist") from error
    except UNREADABLE as error:
        name = getattr(source, "filename", "") if isinstance(source, Image.Image) else source
        raise UnreadableImageError(f"{name or 'the image'} cannot be read: {error}") from error


def _decoded(image: Image.Image) -> Image.Image:
    image.load()
    return ImageOps.exif_transpose(image).convert("RGB")
