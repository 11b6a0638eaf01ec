"""Values and intervals of a benchmark's metrics: how far a number could be chance.

The unit that is resampled is the cluster, never the item. Of a stratum's n clusters n - 1 are drawn with replacement,
which makes the replicates' variance unbiased for few clusters too; a stratum of one cluster says nothing about spread,
and whatever its items enter has no interval.

Source: P. McCarthy and C. Snowden, "The bootstrap and finite population sampling", 1985 (n - 1 draws);
E. B. Wilson, 1927 (interval of a share).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from segros_eval.benchmarks.base import Interval, Metric, Score
from segros_eval.statistics.clustered import agreed, clustered_interval
from segros_eval.statistics.tally import Counter, Floats, Tally

__all__ = ["REPLICATES", "interval_estimates", "percentile_interval", "point_estimates", "resampled"]

REPLICATES = 10_000
_BLOCK = 1_000


def point_estimates(metrics: Sequence[Metric], scores: Sequence[Score]) -> dict[str, float | None]:
    """Return the value of each metric by name, in its unit; the first is the headline.

    One that cannot be told from what is scored is None. One whose groups nobody asked for is left out, but for the
    headline.

    Args:
        metrics: A benchmark's metrics.
        scores: All its scores, unscored ones included.
    """
    asked = {score.group for score in scores}
    tallies: dict[int, Tally] = {}
    found: dict[str, float | None] = {}
    for place, metric in enumerate(metrics):
        if place and metric.groups and asked.isdisjoint(metric.groups):
            continue
        if id(metric.tally) not in tallies:
            tallies[id(metric.tally)] = metric.tally(scores)
        value = float(metric.statistic(tallies[id(metric.tally)].totals())[0])
        found[metric.name] = value if math.isfinite(value) else None
    return found


def interval_estimates(
    metrics: Sequence[Metric], scores: Sequence[Score], *, seed: int = 0, replicates: int = REPLICATES
) -> dict[str, Interval]:
    """Estimate 95% intervals by metric; what has no value or cannot be estimated is left out.

    Where all clusters agree on 0 or on 100% there is nothing to vary; the interval is then Wilson's for the number of
    clusters, and says so. The order of `scores` changes nothing.

    Args:
        metrics: A benchmark's metrics.
        scores: Scores of distinct items.
        seed: Seed of the resampling.
        replicates: Number of replicates.

    Raises:
        ValueError: If two scores are of one item.
    """
    if len({score.item_id for score in scores}) < len(scores):
        raise ValueError("A score is of an item that another score is of.")
    values = point_estimates(metrics, scores)
    drawn: dict[int, tuple[Tally, dict[Counter, Floats]]] = {}
    found: dict[str, Interval] = {}
    for metric in metrics:
        if not metric.clusters or values.get(metric.name) is None:
            continue
        if metric.interval == "standard error":
            members = [score for score in scores if not metric.groups or score.group in metric.groups]
            interval = clustered_interval(members, unit=metric.clusters)
        else:
            if id(metric.tally) not in drawn:
                tally = metric.tally(scores)
                drawn[id(metric.tally)] = tally, resampled([tally], seed=seed, replicates=replicates)[0]
            interval = _replicate_interval(metric, *drawn[id(metric.tally)], replicates=replicates)
        if interval is not None:
            found[metric.name] = interval
    return found


def resampled(tallies: Sequence[Tally], *, seed: int, replicates: int) -> list[dict[Counter, Floats]]:
    """Return the totals of tallies of the same clusters over the same draws of clusters, [R] per counter.

    What a lone cluster of its stratum adds to is NaN.

    Args:
        tallies: At least one.
        seed: Seed of the draws.
        replicates: Number R of replicates.
    """
    first = tallies[0]
    lone = [place for members in first.strata if len(members) == 1 for place in members]
    blocks: list[list[dict[Counter, Floats]]] = [[] for _ in tallies]
    for weights in _draws(first.strata, replicates=replicates, rng=np.random.default_rng(seed)):
        for block, tally in zip(blocks, tallies, strict=True):
            block.append(tally.totals(weights))
    found = []
    for block, tally in zip(blocks, tallies, strict=True):
        totals = {counter: np.concatenate([part[counter] for part in block]) for counter in tally.counters}
        groups = {tally.counters[column][0] for column in np.flatnonzero(tally.table[lone].any(axis=0))}
        found.append({counter: one if counter[0] not in groups else one * np.nan for counter, one in totals.items()})
    return found


def percentile_interval(values: Floats, estimator: str) -> Interval | None:
    """Return the 95% percentile interval of the replicates [R] that are finite; None where none is."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        return None
    low, high = np.percentile(finite, (2.5, 97.5))
    return Interval(float(low), float(high), estimator)


def _draws(strata: Sequence[NDArray[np.intp]], *, replicates: int, rng: np.random.Generator) -> Iterator[Floats]:
    """Yield how often each cluster is drawn, [block, clusters], in blocks of replicates."""
    num_clusters = sum(map(len, strata))
    for start in range(0, replicates, _BLOCK):
        weights = np.zeros((min(_BLOCK, replicates - start), num_clusters))
        for members in strata:
            chances = np.full(len(members), 1 / len(members))
            weights[:, members] = rng.multinomial(len(members) - 1, chances, size=len(weights))
        yield weights


def _replicate_interval(
    metric: Metric, tally: Tally, totals: dict[Counter, Floats], *, replicates: int
) -> Interval | None:
    """Return the percentile interval of a metric's replicates; Wilson's where all of them are 0 or all 100%."""
    found = percentile_interval(
        metric.statistic(totals), f"{metric.clusters}-clustered bootstrap, {replicates} replicates"
    )
    if found is None or found.low < found.high:
        return found
    if metric.unit != "%":
        # Where every cluster is worth the same there is nothing to resample, which is not certainty.
        return None
    if found.low not in (0.0, 100.0):
        return found
    return agreed(found.low / 100, tally.touching(metric.groups), unit=metric.clusters)
