"""Counts, sets of patches and their grids."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from segros_train import masking

often = settings(max_examples=60, deadline=None, derandomize=True)
percents = st.integers(0, 100)


@st.composite
def score_rows(draw: st.DrawFn) -> Tensor:
    """Scores with many ties."""
    size, total = draw(st.integers(1, 3)), draw(st.integers(1, 12))
    values = st.lists(st.integers(0, 3), min_size=total, max_size=total)
    return torch.tensor([draw(values) for _ in range(size)], dtype=torch.float32)


@often
@given(percents, st.integers(0, 5000))
def test_a_share_is_floored_as_it_is_written(percent: int, total: int) -> None:
    exact = percent * total // 100
    assert masking.floor_count(percent / 100, total) == exact
    assert masking.floor_counts(percent / 100, torch.tensor([total, 0])).tolist() == [exact, 0]


def test_a_share_whose_float_falls_short_still_counts_whole() -> None:
    assert math.floor(0.29 * 100) == 28
    assert masking.floor_count(0.29, 100) == 29


@pytest.mark.parametrize(("total", "hints"), [(1024, 307), (576, 172), (256, 76)])
def test_three_tenths_of_the_grids_in_use_are_floored(total: int, hints: int) -> None:
    assert masking.floor_count(0.3, total) == hints


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@often
@given(percent=percents, num_cells=st.sampled_from([10, 36, 100, 256, 1000, 1024]))
def test_the_masked_share_is_ceiled_as_it_is_written(dtype: torch.dtype, percent: int, num_cells: int) -> None:
    found = masking.num_masked(torch.tensor([percent / 100], dtype=dtype), num_cells).item()
    assert found == max(1, math.ceil(Fraction(percent, 100) * num_cells))


def test_rows_of_a_batch_may_mask_different_numbers_of_cells() -> None:
    counts = masking.num_masked(torch.tensor([0.0, 0.301, 0.7, 1.0]), 10)
    assert counts.tolist() == [1, 4, 7, 10]
    assert masking.top_mask(torch.zeros(4, 10), counts).sum(-1).tolist() == [1, 4, 7, 10]
    assert masking.bottom_mask(torch.zeros(4, 10), counts).sum(-1).tolist() == [1, 4, 7, 10]


@often
@given(score_rows())
def test_ranks_order_by_score_and_then_by_index(scores: Tensor) -> None:
    for row, ranks in zip(scores.tolist(), masking.descending_ranks(scores).tolist(), strict=True):
        order = sorted(range(len(row)), key=lambda place: (-row[place], place))
        assert [ranks[place] for place in order] == list(range(len(row)))


@often
@given(score_rows(), st.data())
def test_a_top_and_a_bottom_that_fit_never_overlap(scores: Tensor, data: st.DataObject) -> None:
    total = scores.shape[1]
    top = data.draw(st.integers(0, total))
    bottom = total - top
    assert torch.equal(masking.top_mask(scores, top), ~masking.bottom_mask(scores, bottom))


@often
@given(score_rows(), st.data())
def test_top_and_bottom_indices_stand_in_raster_order(scores: Tensor, data: st.DataObject) -> None:
    total = scores.shape[1]
    count = data.draw(st.integers(0, total))
    for indices, mask in (
        (masking.top_indices(scores, count), masking.top_mask(scores, count)),
        (masking.bottom_indices(scores, count), masking.bottom_mask(scores, count)),
    ):
        assert indices.shape == (len(scores), count)
        assert (indices.diff(dim=-1) > 0).all()
        assert torch.equal(masking.indices_to_mask(indices, total), mask)
        assert torch.equal(masking.mask_to_indices(mask, count=count), indices)


def test_a_random_mask_hides_the_asked_share_of_each_row_anywhere() -> None:
    ratio = torch.tensor([0.3, 0.8]).repeat(2000)
    masks = masking.random_mask(ratio, torch.rand(4000, 10, generator=torch.Generator().manual_seed(0)))
    assert set(masks[0::2].sum(-1).tolist()) == {3}
    assert set(masks[1::2].sum(-1).tolist()) == {8}
    torch.testing.assert_close(masks[0::2].float().mean(0), torch.full((10,), 0.3), atol=0.04, rtol=0)


def test_the_same_grid_keeps_the_scores_as_they_are() -> None:
    scores = torch.randn(2, 12, generator=torch.Generator().manual_seed(0))
    assert masking.resample_scores(scores, (3, 4), (3, 4)) is scores


@pytest.mark.parametrize("target", [(16, 16), (32, 32), (5, 9)])
def test_resampling_keeps_constants_and_follows_scale_and_shift(target: tuple[int, int]) -> None:
    scores = torch.rand(2, 24 * 24, generator=torch.Generator().manual_seed(0))
    found = masking.resample_scores(scores, (24, 24), target)
    assert found.shape == (2, target[0] * target[1])
    torch.testing.assert_close(
        masking.resample_scores(torch.ones(1, 576), (24, 24), target), torch.ones(1, target[0] * target[1])
    )
    torch.testing.assert_close(
        masking.resample_scores(3 * scores - 1, (24, 24), target), 3 * found - 1, atol=1e-5, rtol=0
    )


def test_resampling_keeps_rows_rows_and_columns_columns() -> None:
    rows = torch.arange(24.0).repeat_interleave(24).unsqueeze(0)
    found = masking.resample_scores(rows, (24, 24), (16, 8)).unflatten(1, (16, 8))
    assert (found.diff(dim=1) > 0).all()
    torch.testing.assert_close(found, found[:, :, :1].expand_as(found))


def test_a_coarser_grid_hears_every_source_cell() -> None:
    impulses = torch.eye(576)
    assert (masking.resample_scores(impulses, (24, 24), (6, 6)).amax(-1) > 0).all()


def test_truncated_normal_ratios_follow_the_mar_schedule() -> None:
    uniform = torch.rand(50_000, generator=torch.Generator().manual_seed(0))
    ratios = masking.truncated_normal_ratio(uniform, minimum=0.7)
    assert 0.7 <= ratios.min()
    assert ratios.max() <= 1
    assert ratios.mean().item() == pytest.approx(0.867, abs=0.002)
    assert ratios.std().item() == pytest.approx(0.0835, abs=0.001)
    assert ratios.median().item() == pytest.approx(0.874, abs=0.002)


def test_a_wider_deviation_hides_fewer_cells_down_to_the_minimum() -> None:
    uniform = torch.rand(50_000, generator=torch.Generator().manual_seed(0))
    narrow, wide = (masking.truncated_normal_ratio(uniform, minimum=0.1, deviation=value) for value in (0.25, 0.5))
    assert (wide <= narrow).all()
    assert 0.1 <= wide.min() < 0.11
    # Half of a normal distribution of deviation 0.5, cut at 1.8 deviations: its lower half ends at 0.619 of one.
    assert wide.median().item() == pytest.approx(1 - 0.5 * 0.619, abs=0.005)


def test_cosine_ratios_average_two_over_pi() -> None:
    ratios = masking.cosine_ratio(torch.rand(50_000, generator=torch.Generator().manual_seed(0)))
    assert ratios.mean().item() == pytest.approx(2 / math.pi, abs=0.005)
    assert 0 <= ratios.min()
    assert ratios.max() <= 1
