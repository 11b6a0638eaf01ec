"""Differences of two runs on the same items: is one larger than chance?

What counts is how the runs differ on each item, so the clusters of both are resampled alike. An item that either run
left unscored counts as unscored in both.

Source: Q. McNemar, 1947 (paired binary outcomes).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from scipy.stats import binomtest

from segros_eval.benchmarks.base import Interval, Metric, Score
from segros_eval.statistics.bootstrap import REPLICATES, percentile_interval, resampled
from segros_eval.statistics.tally import Counter, Floats, Tally

__all__ = ["Difference", "mcnemar_exact", "paired_differences"]


@dataclass(frozen=True)
class Difference:
    """How much run A exceeds run B in a metric, on the items both have scored.

    Attributes:
        estimate: The difference, in the metric's unit.
        interval: Its 95% interval; None where there are too few clusters to tell.
        num_items: Items compared.
        num_left_out: Items that only one run has, or that one run left unscored.
        only_a: Items right in A alone; None unless every value is 0 or 1.
        only_b: Items right in B alone.
        mcnemar_p: Exact two-sided p value of McNemar's test, which takes items for independent: where several
            items share a prompt, trust the interval.
    """

    estimate: float
    interval: Interval | None
    num_items: int
    num_left_out: int
    only_a: int | None = None
    only_b: int | None = None
    mcnemar_p: float | None = None


def paired_differences(
    metrics: Sequence[Metric],
    a: Sequence[Score],
    b: Sequence[Score],
    *,
    seed: int = 0,
    replicates: int = REPLICATES,
) -> dict[str, Difference]:
    """Compare two runs by the metrics that can be told from the items both have scored, A minus B.

    Args:
        metrics: A benchmark's metrics; those without an interval of their own are left out.
        a: Scores of run A, of distinct items.
        b: Scores of run B.
        seed: Seed of the resampling.
        replicates: Number of replicates.

    Raises:
        ValueError: If the runs share no scored item, or disagree on an item's cluster or group.
    """
    runs = _shared(_by_item(a), _by_item(b))
    num_items = len({score.item_id for score in (*a, *b)})
    tallies: dict[int, tuple[Tally, Tally]] = {}
    drawn: dict[int, tuple[dict[Counter, Floats], ...]] = {}
    found = {}
    for metric in metrics:
        place = id(metric.tally)
        members = [[score for score in run if not metric.groups or score.group in metric.groups] for run in runs]
        if not metric.clusters or not any(score.value is not None for score in members[0]):
            continue
        if place not in tallies:
            tallies[place] = metric.tally(runs[0]), metric.tally(runs[1])
            drawn[place] = tuple(resampled(tallies[place], seed=seed, replicates=replicates))
        now, then = (metric.statistic(tally.totals()) for tally in tallies[place])
        estimate = float((now - then)[0])
        if not math.isfinite(estimate):
            continue
        values = metric.statistic(drawn[place][0]) - metric.statistic(drawn[place][1])
        interval = percentile_interval(values, f"paired {metric.clusters}-clustered bootstrap, {replicates} replicates")
        items = sum(score.value is not None for score in members[0])
        asked = num_items if not metric.groups else _num_asked(metric, (*a, *b))
        found[metric.name] = Difference(estimate, interval, items, asked - items, *_discordance(*members))
    return found


def mcnemar_exact(only_a: int, only_b: int) -> float:
    """Return the two-sided p value of McNemar's exact test: are discordant items split like fair coins?

    Args:
        only_a: Items right in A alone.
        only_b: Items right in B alone.
    """
    return float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0


def _num_asked(metric: Metric, scores: Sequence[Score]) -> int:
    return len({score.item_id for score in scores if score.group in metric.groups})


def _by_item(scores: Sequence[Score]) -> dict[str, Score]:
    items = {score.item_id: score for score in scores}
    if len(items) < len(scores):
        raise ValueError(f"{len(scores) - len(items)} scores are of items that another score is of.")
    return items


def _shared(a: dict[str, Score], b: dict[str, Score]) -> tuple[list[Score], list[Score]]:
    """Return the scores of items that both runs were asked, unscored in both where one is."""
    both = sorted(a.keys() & b.keys())
    for item in both:
        places = [(run[item].cluster_id, run[item].group) for run in (a, b)]
        if places[0] != places[1]:
            raise ValueError(f"Item {item!r} lies in (cluster, group) {places[0]} in A and in {places[1]} in B.")
    scored = {item for item in both if a[item].value is not None and b[item].value is not None}
    if not scored:
        numbers = [sum(score.value is not None for score in run.values()) for run in (a, b)]
        raise ValueError(f"The runs share no scored item: {numbers[0]} are scored in A, {numbers[1]} in B.")
    kept_a, kept_b = ([run[item] if item in scored else _lost(run[item]) for item in both] for run in (a, b))
    return kept_a, kept_b


def _lost(score: Score) -> Score:
    return replace(score, raw=None, parsed=None, status="unscored", value=None)


def _discordance(a: Sequence[Score], b: Sequence[Score]) -> tuple[int | None, int | None, float | None]:
    pairs = [(left.value, right.value) for left, right in zip(a, b, strict=True) if left.value is not None]
    if not {value for pair in pairs for value in pair} <= {0.0, 1.0}:
        return None, None, None
    only_a, only_b = pairs.count((1.0, 0.0)), pairs.count((0.0, 1.0))
    return only_a, only_b, mcnemar_exact(only_a, only_b)
