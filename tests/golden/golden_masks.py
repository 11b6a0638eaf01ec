"""Masks of golden sets, in COCO's compressed run lengths."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["decoded"]


def decoded(mask: Mapping[str, Any]) -> NDArray[np.bool_]:
    """Return a mask of `{"size": [height, width], "counts": text}` as [height, width] bool.

    Runs alternate between outside and inside, column by column. A count is written in digits of five bits, least
    first, from the character "0" on, bit 5 set while more follow, bit 4 of the last being the sign; from the third
    count on it is the difference to the count before last.
    """
    height, width = mask["size"]
    runs: list[int] = []
    value, shift = 0, 0
    for digit in (ord(character) - 48 for character in mask["counts"]):
        value |= (digit & 31) << shift
        shift += 5
        if not digit & 32:
            value -= (1 << shift) if digit & 16 else 0
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value, shift = 0, 0
    inside = np.arange(len(runs)) % 2 == 1
    return np.repeat(inside, runs).reshape(width, height).T
