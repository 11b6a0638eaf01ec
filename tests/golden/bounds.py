"""Bounds of the goldens: how far a number may lie from the recorded one, and why.

A recording is a float32 run of the original code, r = x + e: the exact number and that run's rounding. Compared with
a float32 run of ours, the difference holds two roundings, one of which changes with the processor: the order of a sum,
fused operations and the last bit of an exponential are the library's choice. So the goldens run in float64, from the
recorded weights and inputs, which float64 holds exactly. What is measured is then x on every processor, to 1e-13 of its
size, and the difference is the recording's own rounding e, a constant of the set.

e is counted in units: one unit is float32's step (2^-23) at the largest recorded value. The number of units is the
amplification of the computation, and an independent draw of it is the difference between our own float32 and float64
runs (`docs/decisions/golden-bounds.md` has the numbers). Where a computation magnifies rounding by orders of magnitude,
the test takes our float32 run beside the float64 one: `own_units`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

__all__ = ["HEADROOM", "PASS", "close", "doubled", "near", "own_units", "resized", "widened"]

STEP = torch.finfo(torch.float32).eps

PASS = 128
"""Units of one pass through a network, its loss and its gradients: three times the most seen of ours, 41."""

HEADROOM = 8
"""Ratio of two draws of one rounding: 3.5 at most in the committed set, for whole runs of Harmon; twice that."""


def resized(side_px: int) -> int:
    """Return the units of a pass over an image that was resized from or to `side_px`.

    Where a pixel is read is computed in float32, so it is off by up to a step of the side, and the value by that times
    the difference of two neighbours, at most twice the largest value.
    """
    return PASS + 2 * side_px


def close(measured: Tensor, recorded: Tensor, *, units: float = PASS) -> None:
    """Check that a measured tensor lies within so many units of the recorded one."""
    recorded = recorded.double()
    size = float(recorded.abs().max())
    torch.testing.assert_close(measured.detach().double(), recorded, rtol=0, atol=units * STEP * size)


def near(recorded: float, *, units: float = PASS) -> Any:
    """Return what equals a number within so many units of the recorded one."""
    return pytest.approx(recorded, rel=units * STEP, abs=0)


def own_units(single: Tensor, double: Tensor) -> float:
    """Return the units allowed where our own float32 run gave `single` and the float64 one `double`."""
    rounding = float((single.double() - double).abs().max()) / float(double.abs().max())
    return PASS + HEADROOM * rounding / STEP


def widened(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return recorded tensors with float64 in place of float32."""
    return {name: value.double() if value.dtype == torch.float32 else value for name, value in tensors.items()}


@contextmanager
def doubled() -> Iterator[None]:
    """Let `Tensor.float`, with which the code asks for at least float32, give float64."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tensor, "float", Tensor.double)
        yield
