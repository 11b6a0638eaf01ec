"""The bounds of the goldens and what is read of a recording."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from bounds import PASS, STEP, close, doubled, near, own_units, widened
from showo_golden import Golden


def test_a_bound_grows_with_the_recorded_size_and_lets_nothing_larger_pass() -> None:
    for size in (1e-3, 1.0, 300.0):
        recorded = torch.tensor([size, 0.0])
        bound = PASS * STEP * size
        close(recorded.double() + 0.9 * bound, recorded)
        with pytest.raises(AssertionError, match="not close"):
            close(recorded.double() + 1.1 * bound, recorded)
        assert size + 0.9 * bound == near(size) and size + 1.1 * bound != near(size)


def test_what_an_own_run_rounds_away_widens_a_bound_eightfold() -> None:
    exact = torch.tensor([4.0], dtype=torch.float64)
    assert own_units(exact.float(), exact) == PASS
    assert own_units(exact.float() * (1 + 100 * STEP), exact) == pytest.approx(PASS + 800)


def test_widened_tensors_and_casts_are_float64_and_integers_stay() -> None:
    tensors = widened({"x": torch.ones(1), "ids": torch.ones(1, dtype=torch.int64)})
    assert (tensors["x"].dtype, tensors["ids"].dtype) == (torch.float64, torch.int64)
    with doubled():
        assert torch.ones(1).float().dtype == torch.float64
    assert torch.ones(1).float().dtype == torch.float32


def test_a_mixed_batch_has_as_many_rows_of_each_task_as_the_recording_says() -> None:
    ids = {"c.input_ids": torch.zeros(7, 5)}
    meanings = {"c.input_ids": "[7, 5] int64: mixed batch rows: 2 t2i, 3 lm, 2 mmu"}
    recording = SimpleNamespace(tensors=ids, meanings=meanings)
    assert Golden.rows(recording, "c.input_ids") == {"t2i": slice(0, 2), "lm": slice(2, 5), "mmu": slice(5, 7)}
    recording.meanings = {"c.input_ids": "[7, 5] int64: mixed batch rows: 2 t2i, 1 lm, 2 mmu"}
    with pytest.raises(AssertionError, match="1 lm"):
        Golden.rows(recording, "c.input_ids")
