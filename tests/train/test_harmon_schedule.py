"""The steps a draw of Harmon's diffusion head visits."""

from __future__ import annotations

import pytest

from segros_train.backbones.harmon.diffusion import sampling_steps, training_steps


@pytest.mark.parametrize(("count", "last"), [(25, 999), (25, 950), (100, 999), (2, 500)])
def test_a_draw_visits_ascending_timesteps_from_zero_to_the_last(count: int, last: int) -> None:
    timesteps, steps = sampling_steps(count, last)
    assert len(timesteps) == len(steps) == count
    assert timesteps[0] == 0 and timesteps[-1] == last
    assert all(a < b for a, b in zip(timesteps, timesteps[1:], strict=False))


def test_visited_steps_carry_the_signal_of_training() -> None:
    timesteps, steps = sampling_steps(25, 950)
    for timestep, step in zip(timesteps, steps, strict=True):
        assert step.signal == pytest.approx(training_steps()[timestep].signal, rel=1e-9)


def test_an_error_of_the_first_step_is_amplified_a_thousandfold_from_the_end_of_training_and_not_from_950() -> None:
    """Why a tiny model starts before the end of the schedule."""

    def amplification(last: int) -> float:
        first = sampling_steps(25, last)[1][-1]
        return first.mean_start * first.inverse_noise

    assert amplification(999) > 1000
    assert amplification(950) < 3


@pytest.mark.parametrize(("count", "last"), [(0, 999), (1001, 999), (952, 950), (25, 1000)])
def test_a_schedule_that_cannot_be_is_refused(count: int, last: int) -> None:
    with pytest.raises(ValueError, match="denoising steps"):
        sampling_steps(count, last)
