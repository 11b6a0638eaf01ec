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

from segros_eval.benchmarks.base import Score
from segros_eval.statistics.bootstrap import (
    Totals,
    bootstrap_intervals,
    macro_mean,
    mcnemar_exact,
    paired_difference,
    pooled_mean,
    wilson_interval,
)

OVERALL = {"overall": macro_mean}


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
        interval = bootstrap_intervals(simulated(rng), OVERALL, seed=trial, replicates=400)["overall"]
        covered += interval.low <= 50.0 <= interval.high
    # Standard error of the share at 95%: 1.1 points.
    assert 0.92 <= covered / 400 <= 0.98


def test_taking_draws_of_a_prompt_for_independent_would_cover_too_rarely() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(400):
        alone = [replace(item, cluster_id=item.item_id) for item in simulated(rng)]
        interval = bootstrap_intervals(alone, OVERALL, seed=trial, replicates=400)["overall"]
        covered += interval.low <= 50.0 <= interval.high
    assert covered / 400 < 0.9


def test_the_spread_of_replicates_is_the_unbiased_standard_error_even_with_five_clusters() -> None:
    values = [0.0, 0.1, 0.35, 0.6, 1.0]
    scores = [score(str(n), 0, value, "a") for n, value in enumerate(values)]
    drawn: list[np.ndarray] = []

    def spy(totals: Totals) -> np.ndarray:
        drawn.append(totals.means[:, 0])
        return totals.means[:, 0]

    bootstrap_intervals(scores, {"spy": spy}, replicates=40_000)
    assert np.std(drawn[0]) == pytest.approx(np.std(values, ddof=1) / np.sqrt(5), rel=0.02)


@pytest.mark.parametrize("stratified", [True, False])
def test_the_order_of_scores_changes_nothing(stratified: bool) -> None:
    rng = np.random.default_rng(1)
    scores = [replace(item, value=rng.random()) for item in simulated(rng)]
    shuffled = random.Random(2).sample(scores, len(scores))
    metrics = {"overall": macro_mean, "pooled": pooled_mean}
    expected = bootstrap_intervals(scores, metrics, replicates=200, stratified=stratified)
    assert bootstrap_intervals(shuffled, metrics, replicates=200, stratified=stratified) == expected
    other = simulated(rng)
    difference = paired_difference(scores, other, replicates=200, stratified=stratified)
    assert paired_difference(shuffled, other[::-1], replicates=200, stratified=stratified) == difference


def test_the_same_seed_gives_the_same_interval_and_another_seed_another() -> None:
    scores = simulated(np.random.default_rng(1))
    first, again, other = (bootstrap_intervals(scores, OVERALL, seed=seed, replicates=200) for seed in (3, 3, 4))
    assert first == again != other


def test_unscored_items_change_no_interval() -> None:
    scores = simulated(np.random.default_rng(1))
    more = [*scores, score("a-0", 99, None, "a"), score("lost", 0, None, "c")]
    assert bootstrap_intervals(more, OVERALL, replicates=200) == bootstrap_intervals(scores, OVERALL, replicates=200)


def test_a_stratified_bootstrap_ignores_how_far_apart_the_groups_are() -> None:
    scores = [
        score(f"{group}-{n}", 0, base + 0.01 * (n % 2), group)
        for group, base in (("a", 0.1), ("b", 0.9))
        for n in range(8)
    ]
    pooled = {"pooled": pooled_mean}
    apart, together = (
        bootstrap_intervals(scores, pooled, replicates=500, stratified=stratified)["pooled"]
        for stratified in (True, False)
    )
    assert apart.high - apart.low < 1 < 20 < together.high - together.low


@pytest.mark.parametrize(("value", "low", "high"), [(1.0, 72.2467, 100.0), (0.0, 0.0, 27.7533)])
def test_where_all_prompts_agree_the_interval_is_wilsons_and_says_so(value: float, low: float, high: float) -> None:
    scores = [score(str(n), draw, value, "a") for n in range(10) for draw in range(4)]
    for interval in bootstrap_intervals(scores, OVERALL, replicates=200).values():
        assert (interval.low, interval.high) == pytest.approx((low, high), abs=1e-3)
        assert interval.estimator == "Wilson, 10 prompts that all agree"


def test_one_prompt_alone_has_no_interval() -> None:
    scores = [score("only", draw, float(draw % 2), "a") for draw in range(8)]
    assert bootstrap_intervals(scores, OVERALL, replicates=50) == {}


def test_a_group_with_one_prompt_leaves_no_interval_of_the_whole() -> None:
    scores = [score(str(n), 0, float(n % 2), "a") for n in range(6)] + [score("only", 0, 1.0, "b")]
    found = bootstrap_intervals(scores, {"overall": macro_mean, "pooled": pooled_mean}, replicates=50)
    assert set(found) == {"a"}
    assert paired_difference(scores, scores, replicates=50).interval is None


def test_nothing_scored_has_no_interval() -> None:
    assert bootstrap_intervals([score("a", 0, None, "a")], OVERALL, replicates=50) == {}


def test_an_item_scored_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="another score"):
        bootstrap_intervals([score("a", 0, 1.0), score("a", 0, 0.0)], OVERALL)


def test_a_cluster_in_two_groups_needs_an_unstratified_bootstrap() -> None:
    scores = [score(f"{n}", draw, float((n + draw) % 3 == 0), "ab"[draw % 2]) for n in range(9) for draw in range(4)]
    with pytest.raises(ValueError, match="stratified=False"):
        bootstrap_intervals(scores, OVERALL, replicates=50)
    assert set(bootstrap_intervals(scores, OVERALL, replicates=50, stratified=False)) == {"overall", "a", "b"}


def test_a_run_differs_from_itself_by_exactly_nothing() -> None:
    scores = simulated(np.random.default_rng(4), clusters=7)
    difference = paired_difference(scores, scores, replicates=300)
    assert difference.interval is not None
    assert (difference.estimate, difference.interval.low, difference.interval.high) == (0.0, 0.0, 0.0)
    assert (difference.only_a, difference.only_b, difference.mcnemar_p) == (0, 0, 1.0)


def test_a_difference_is_between_means_of_groups_and_turns_its_sign_with_the_runs() -> None:
    a = [score(f"a-{n}", 0, 1.0, "a") for n in range(6)] + [score(f"b-{n}", 0, float(n < 1), "b") for n in range(2)]
    b = [replace(item, value=float(item.item_id == "a-0/0")) for item in a]
    forth, back = paired_difference(a, b, replicates=300), paired_difference(b, a, replicates=300)
    assert forth.estimate == pytest.approx(100 * (5 / 6 + 1 / 2) / 2)
    assert back.estimate == -forth.estimate
    assert forth.interval is not None and back.interval is not None
    assert (back.interval.low, back.interval.high) == pytest.approx((-forth.interval.high, -forth.interval.low))
    assert (forth.only_a, forth.only_b, forth.num_items) == (6, 0, 8)


def test_pairing_narrows_the_interval_of_runs_that_agree_on_most_items() -> None:
    rng = np.random.default_rng(6)
    a = simulated(rng, clusters=40)
    b = [replace(item, value=1.0 - item.value) if rng.random() < 0.05 and item.value else item for item in a]
    paired = paired_difference(a, b, replicates=500).interval
    alone = bootstrap_intervals(a, OVERALL, replicates=500)["overall"]
    assert paired is not None
    assert paired.high - paired.low < 0.5 * (alone.high - alone.low)


def test_items_that_one_run_lacks_are_left_out_and_counted() -> None:
    a = [score(str(n), 0, 1.0) for n in range(4)]
    b = [score("0", 0, 0.0), score("1", 0, None), score("2", 0, 1.0), score("9", 0, 1.0)]
    difference = paired_difference(a, b, replicates=50)
    assert (difference.num_items, difference.num_left_out) == (2, 3)
    assert difference.estimate == 50.0


def test_runs_without_a_shared_item_are_refused() -> None:
    with pytest.raises(ValueError, match="share no scored item"):
        paired_difference([score("a", 0, 1.0)], [score("b", 0, 1.0)])


def test_runs_that_sort_an_item_differently_are_refused() -> None:
    with pytest.raises(ValueError, match="'a/0'"):
        paired_difference([score("a", 0, 1.0, "x")], [score("a", 0, 1.0, "y")])


def test_graded_values_have_no_mcnemar_test() -> None:
    a = [score(str(n), 0, n / 10) for n in range(5)]
    difference = paired_difference(a, [replace(item, value=0.0) for item in a], replicates=50)
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
    assert wilson_interval(0, total)[0] == 0.0
    assert wilson_interval(total, total)[1] == 1.0


@given(st.integers(1, 500), st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_the_wilson_interval_is_scipys(total: int, share: float) -> None:
    num_right = round(share * total)
    expected = binomtest(num_right, total).proportion_ci(method="wilson")
    assert wilson_interval(num_right, total) == pytest.approx((expected.low, expected.high), abs=1e-9)
