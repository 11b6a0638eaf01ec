"""Pictures as a judge is sent them, and the fixed questions that tell whether a judge has changed."""

from __future__ import annotations

import base64
import functools
import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from segros_eval.benchmarks.base import JudgeRequest
from segros_eval.benchmarks.folders import read_response
from segros_eval.benchmarks.images import UNREADABLE, UnreadableImageError

__all__ = ["CANARIES", "Picture", "canary_picture", "encode", "encoded"]


@dataclass(frozen=True)
class Picture:
    """A picture ready to be sent.

    Attributes:
        digest: sha256 of its pixels and size.
        uri: The picture as a data URI of a PNG file; lossless, so that what is judged is what was drawn.
    """

    digest: str
    uri: str


def encode(source: Any) -> Picture:
    """Read a picture and make it ready.

    Args:
        source: An image, the path of one, or a cell of a grid.

    Raises:
        UnreadableImageError: If it cannot be read.
    """
    if isinstance(source, Path) and source.suffix == ".png" and (stored := _stored(source)) is not None:
        return stored
    image = read_response(source)
    if isinstance(image, str):
        raise UnreadableImageError(image)
    stream = io.BytesIO()
    image.save(stream, format="PNG", compress_level=1)
    return _picture(image, stream.getvalue())


def encoded(source: Any) -> Picture | str:
    """Return a picture made ready as by `encode`, or why it cannot be read."""
    try:
        return encode(source)
    except UnreadableImageError as error:
        return str(error)


def _stored(path: Path) -> Picture | None:
    """Return the picture of a plain PNG file, whose own bytes are sent; None where the file is another, or broken."""
    try:
        content = path.read_bytes()
        with Image.open(io.BytesIO(content)) as image:
            # Whether there is EXIF is known once all is read; asked before, the pixels would be decoded twice.
            image.load()
            is_plain = image.format == "PNG" and image.mode == "RGB" and not image.getexif()
            return _picture(image, content) if is_plain else None
    except UNREADABLE:
        return None


def _picture(image: Image.Image, content: bytes) -> Picture:
    digest = hashlib.sha256(f"{image.size}".encode())
    digest.update(image.tobytes())
    return Picture(digest.hexdigest(), f"data:image/png;base64,{base64.b64encode(content).decode()}")


_SCORES = tuple(str(score) for score in range(11))
CANARIES = tuple(
    JudgeRequest(None, (text,), "canary-v1", max_tokens=4, choices=choices)
    for text, choices in (
        ("Is there a red disk in the image? Answer with yes or no.", ("yes", "no")),
        ("Is the disk left of the square? Answer with yes or no.", ("yes", "no")),
        ("How well does the image show two green disks, from 0 to 10? Answer with a number.", _SCORES),
        ("How well does the image show a disk and a square, from 0 to 10? Answer with a number.", _SCORES),
    )
)
"""Questions about `canary_picture(i)`; never part of a score."""


@functools.cache
def canary_picture(number: int) -> Picture:
    """Return the picture of a canary, painted alike on every machine."""
    y, x = np.mgrid[0:112, 0:112]
    pixels = np.stack([150 + x // 4, 150 + y // 4, 180 - x // 8], axis=2).astype(np.uint8)
    pixels[(x - 30) ** 2 + (y - 40) ** 2 < 18**2] = (200, 30, 36) if number % 2 == 0 else (30, 150, 60)
    pixels[(abs(x - 80) < 15) & (abs(y - 70) < 15)] = (38, 84, 224)
    return encode(Image.fromarray(pixels))
