"""Measure how fast the embedded world is drawn, beside decoding a PNG of the same size, in one run.

Usage: `python benchmarks/shapes.py`. Prints samples per second on one core and the ratio.
"""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable

from PIL import Image

from segros_train.data.shapes.sets import GenerationSet

NUM_SAMPLES = 2000


def rate(work: Callable[[int], object]) -> float:
    """Return calls per second over NUM_SAMPLES calls, in processor time."""
    began = time.process_time()
    for index in range(NUM_SAMPLES):
        work(index)
    return NUM_SAMPLES / (time.process_time() - began)


def main() -> None:
    """Print both rates and their ratio."""
    source = GenerationSet(0)
    buffer = io.BytesIO()
    source[0].image.save(buffer, "PNG")
    encoded = buffer.getvalue()
    drawn = rate(lambda index: source[index])
    decoded = rate(lambda _: Image.open(io.BytesIO(encoded)).convert("RGB"))
    sys.stdout.write(f"drawn: {drawn:.0f} samples/s; PNG decoded: {decoded:.0f}/s; ratio {drawn / decoded:.2f}\n")


if __name__ == "__main__":
    main()
