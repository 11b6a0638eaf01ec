"""Reading images of training data, with errors that name the item."""

from __future__ import annotations

from pathlib import Path
from typing import IO

from PIL import Image

from segros_train.errors import PrerequisiteError

__all__ = ["IMAGE_SUFFIXES", "DataError", "read_image"]

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp"})

# What Pillow raises on damaged files of the formats above: a header it does not know, a truncated or garbled
# body, a broken PNG chunk, an implausible size.
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)


class DataError(PrerequisiteError):
    """Say that one item of a data set cannot be read."""


def read_image(source: Path | IO[bytes], *, item_id: str) -> Image.Image:
    """Decode an image to RGB.

    Raises:
        DataError: If it is missing or damaged; names the item.
    """
    try:
        with Image.open(source) as image:
            return image.convert("RGB")
    except _DAMAGE as error:
        raise DataError(f"Cannot read the image of item {item_id!r}: {error}.") from error
