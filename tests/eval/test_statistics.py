"""Intervals and differences: right on average, indifferent to order, silent where nothing can be said."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from segros_eval.benchmarks.base import Metric, Score
from segros_eval.statistics.bootstrap import interval_estimates, point_estimates
from segros_eval.statistics.clustered import agreed
from segros_eval.statistics.paired import mcnemar_exact, paired_differences
from segros_eval.statistics.tally import Totals, group_mean, item_mean, item_tally, mean_of_groups


def metrics_of(*, stratified: bool = True, names: Sequence[str] = "ab") -> tuple[Metric, ...]:
    """Return the mean of two groups' means, the mean over items, and each group's."""
    tally = item_tally(stratified=stratified)
    whole = Metric("overall", tally, lambda totals: 100 * mean_of_groups(totals, names), clusters="prompt")
    groups = [item_mean(name, tally, name, factor=100, clusters="prompt") for name in names]
    return whole, item_mean("pooled", tally, factor=100, clusters="prompt"), *groups


OVERALL = metrics_of()


def score(cluster: str, draw: int, value: float | None, group: str = "") -> Score:
    status = "unscored" if value is None else "scored"
    return Score(f"{cluster}/{draw}", cluster, None, None, status, value, group=group)


def simulated(
    rng: np.random.Generator, *, clusters: int = 20, draws: int = 4, groups: Sequence[str] = ("a", "b")
) -> list[Score]:
    """Return binary scores whose clusters have success rates of their own, with mean 1/2."""
    rates = {(group, n): rng.beta(1, 1) for group in groups for n in range(clusters)}
    return [
        score(f"{group}-{n}", draw, float(rng.random() < rate), group)
        for (group, n), rate in rates.items()
        for draw in range(draws)
    ]


def test_intervals_cover_the_truth_in_about_95_of_100_runs() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(400):
        interval = interval_estimates(OVERALL, simulated(rng), seed=trial, replicates=400)["overall"]
        covered += interval.low <= 50.0 <= interval.high
    # Standard error of the share at 95%: 1.1 points.
    assert 0.92 <= covered / 400 <= 0.98


def test_taking_draws_of_a_prompt_for_independent_would_cover_too_rarely() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(400):
        alone = [replace(item, cluster_id=item.item_id) for item in simulated(rng)]
        interval = interval_estimates(OVERALL, alone, seed=trial, replicates=400)["overall"]
        covered += interval.low <= 50.0 <= interval.high
    assert covered / 400 < 0.9


def test_the_spread_of_replicates_is_the_unbiased_standard_error_even_with_five_clusters() -> None:
    values = [0.0, 0.1, 0.35, 0.6, 1.0]
    scores = [score(str(n), 0, value, "a") for n, value in enumerate(values)]
    drawn: list[np.ndarray] = []

    def spy(totals: Totals) -> np.ndarray:
        drawn.append(group_mean(totals, "a"))
        return drawn[-1]

    interval_estimates([Metric("spy", item_tally(), spy, clusters="prompt")], scores, replicates=40_000)
    assert np.std(drawn[-1]) == pytest.approx(np.std(values, ddof=1) / np.sqrt(5), rel=0.02)


@pytest.mark.parametrize("stratified", [True, False])
def test_the_order_of_scores_changes_nothing(stratified: bool) -> None:
    rng = np.random.default_rng(1)
    scores = [replace(item, value=rng.random()) for item in simulated(rng)]
    shuffled = random.Random(2).sample(scores, len(scores))
    metrics = metrics_of(stratified=stratified)
    expected = interval_estimates(metrics, scores, replicates=200)
    assert set(expected) == {"overall", "pooled", "a", "b"}
    assert interval_estimates(metrics, shuffled, replicates=200) == expected
    other = simulated(rng)
    difference = paired_differences(metrics, scores, other, replicates=200)
    assert paired_differences(metrics, shuffled, other[::-1], replicates=200) == difference


def test_the_same_seed_gives_the_same_interval_and_another_seed_another() -> None:
    scores = simulated(np.random.default_rng(1))
    first, again, other = (interval_estimates(OVERALL, scores, seed=seed, replicates=200) for seed in (3, 3, 4))
    assert first == again != other


def test_unscored_items_change_no_interval() -> None:
    scores = simulated(np.random.default_rng(1))
    more = [*scores, score("a-0", 99, None, "a"), score("lost", 0, None, "c")]
    assert interval_estimates(OVERALL, more, replicates=200) == interval_estimates(OVERALL, scores, replicates=200)


def test_a_stratified_bootstrap_ignores_how_far_apart_the_groups_are() -> None:
    scores = [
        score(f"{group}-{n}", 0, base + 0.01 * (n % 2), group)
        for group, base in (("a", 0.1), ("b", 0.9))
        for n in range(8)
    ]
    apart, together = (
        interval_estimates(metrics_of(stratified=stratified), scores, replicates=500)["pooled"]
        for stratified in (True, False)
    )
    assert apart.high - apart.low < 1 < 20 < together.high - together.low


@pytest.mark.parametrize(("value", "low", "high"), [(1.0, 72.2467, 100.0), (0.0, 0.0, 27.7533)])
def test_where_all_prompts_agree_the_interval_is_wilsons_and_says_so(value: float, low: float, high: float) -> None:
    scores = [score(str(n), draw, value, "a") for n in range(10) for draw in range(4)]
    for interval in interval_estimates(metrics_of(names="a"), scores, replicates=200).values():
        assert (interval.low, interval.high) == pytest.approx((low, high), abs=1e-3)
        assert interval.estimator == "Wilson, 10 prompts that all agree"


def test_one_prompt_alone_has_no_interval() -> None:
    scores = [score("only", draw, float(draw % 2), "a") for draw in range(8)]
    assert interval_estimates(OVERALL, scores, replicates=50) == {}


def test_a_group_with_one_prompt_leaves_no_interval_of_the_whole() -> None:
    scores = [score(str(n), 0, float(n % 2), "a") for n in range(6)] + [score("only", 0, 1.0, "b")]
    assert set(interval_estimates(OVERALL, scores, replicates=50)) == {"a"}
    differences = paired_differences(OVERALL, scores, scores, replicates=50)
    assert {name for name, one in differences.items() if one.interval is not None} == {"a"}


def test_nothing_scored_has_no_interval() -> None:
    assert interval_estimates(OVERALL, [score("a", 0, None, "a")], replicates=50) == {}


def test_an_item_scored_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="another score"):
        interval_estimates(OVERALL, [score("a", 0, 1.0), score("a", 0, 0.0)])


def test_clusters_that_lie_in_several_groups_are_resampled_together() -> None:
    scores = [score(f"{n}", draw, float((n + draw) % 3 == 0), "ab"[draw % 2]) for n in range(9) for draw in range(4)]
    apart, together = (
        interval_estimates(metrics_of(stratified=stratified), scores, replicates=50) for stratified in (True, False)
    )
    assert set(apart) == {"overall", "pooled", "a", "b"} and apart == together


def test_a_metric_whose_groups_nobody_asked_for_is_left_out_and_one_that_nothing_scored_is_none() -> None:
    scores = [score("1", 0, 1.0, "a"), score("2", 0, None, "b")]
    assert point_estimates(metrics_of(names="abc"), scores) == {"overall": None, "pooled": 100.0, "a": 100.0, "b": None}


def test_a_run_differs_from_itself_by_exactly_nothing() -> None:
    scores = simulated(np.random.default_rng(4), clusters=7)
    difference = paired_differences(OVERALL, scores, scores, replicates=300)["overall"]
    assert difference.interval is not None
    assert (difference.estimate, difference.interval.low, difference.interval.high) == (0.0, 0.0, 0.0)
    assert (difference.only_a, difference.only_b, difference.mcnemar_p) == (0, 0, 1.0)


def test_a_difference_is_between_means_of_groups_and_turns_its_sign_with_the_runs() -> None:
    a = [score(f"a-{n}", 0, 1.0, "a") for n in range(6)] + [score(f"b-{n}", 0, float(n < 1), "b") for n in range(2)]
    b = [replace(item, value=float(item.item_id == "a-0/0")) for item in a]
    forth, back = (paired_differences(OVERALL, *runs, replicates=300)["overall"] for runs in ((a, b), (b, a)))
    assert forth.estimate == pytest.approx(100 * (5 / 6 + 1 / 2) / 2)
    assert back.estimate == -forth.estimate
    assert forth.interval is not None and back.interval is not None
    assert (back.interval.low, back.interval.high) == pytest.approx((-forth.interval.high, -forth.interval.low))
    assert (forth.only_a, forth.only_b, forth.num_items) == (6, 0, 8)


def test_pairing_narrows_the_interval_of_runs_that_agree_on_most_items() -> None:
    rng = np.random.default_rng(6)
    a = simulated(rng, clusters=40)
    b = [replace(item, value=1.0 - item.value) if rng.random() < 0.05 and item.value else item for item in a]
    paired = paired_differences(OVERALL, a, b, replicates=500)["overall"].interval
    alone = interval_estimates(OVERALL, a, replicates=500)["overall"]
    assert paired is not None
    assert paired.high - paired.low < 0.5 * (alone.high - alone.low)


def test_items_that_one_run_lacks_are_left_out_and_counted() -> None:
    a = [score(str(n), 0, 1.0) for n in range(4)]
    b = [score("0", 0, 0.0), score("1", 0, None), score("2", 0, 1.0), score("9", 0, 1.0)]
    difference = paired_differences(OVERALL, a, b, replicates=50)["pooled"]
    assert (difference.num_items, difference.num_left_out) == (2, 3)
    assert difference.estimate == 50.0


def test_runs_without_a_shared_item_are_refused() -> None:
    with pytest.raises(ValueError, match="share no scored item"):
        paired_differences(OVERALL, [score("a", 0, 1.0)], [score("b", 0, 1.0)])


def test_runs_that_sort_an_item_differently_are_refused() -> None:
    with pytest.raises(ValueError, match="'a/0'"):
        paired_differences(OVERALL, [score("a", 0, 1.0, "x")], [score("a", 0, 1.0, "y")])


def test_graded_values_have_no_mcnemar_test() -> None:
    a = [score(str(n), 0, n / 10) for n in range(5)]
    difference = paired_differences(OVERALL, a, [replace(item, value=0.0) for item in a], replicates=50)["pooled"]
    assert (difference.only_a, difference.only_b, difference.mcnemar_p) == (None, None, None)


@given(st.integers(0, 60), st.integers(0, 60))
@settings(max_examples=60, deadline=None)
def test_mcnemars_test_is_the_exact_binomial_one(only_a: int, only_b: int) -> None:
    expected = binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
    assert mcnemar_exact(only_a, only_b) == pytest.approx(expected, rel=1e-9)


def test_mcnemars_test_stands_thousands_of_discordant_items() -> None:
    assert 0.0 < mcnemar_exact(1500, 1400) < 0.07


@given(st.integers(1, 500))
def test_the_wilson_interval_of_none_or_all_starts_or_ends_there_exactly(total: int) -> None:
    assert agreed(0.0, total, unit="prompt").low == 0.0
    assert agreed(1.0, total, unit="prompt").high == 100.0
