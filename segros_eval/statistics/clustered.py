"""Uncertainty of questions that share a picture: standard errors of means, and the bootstrap of counts.

Answers about one picture are right and wrong together. With d_i the deviation of answer i from the mean of n answers
and s their standard deviation, the clustered standard error of a mean adds the products within pictures:

    SE^2 = s^2 / n  +  (1 / n^2)  sum over pictures c of  sum over i != j in c of  d_i d_j.

A number that is no mean (F1, a precision) is a function of counts; pictures are resampled and the counts summed anew.

Source: E. Miller, "Adding error bars to evals", 2024, equation 4, with s over n - 1 as lmms-eval@75571cf computes it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy.special import stdtrit

from segros_eval.benchmarks.base import Interval, Score
from segros_eval.statistics.bootstrap import REPLICATES, Floats, can_vary, draw_weights, wilson_interval

__all__ = ["bootstrap_counts", "clustered_interval", "clustered_stderr", "group_intervals", "mean_stderr", "scaled"]


def mean_stderr(values: Sequence[float]) -> float:
    """Return the standard error of the mean of independent values, at least two."""
    return float(np.std(values, ddof=1) / math.sqrt(len(values)))


def clustered_stderr(values: Sequence[float], clusters: Sequence[str]) -> float:
    """Return the standard error of the mean of values that are independent between clusters only.

    Args:
        values: At least two.
        clusters: The cluster of each value.
    """
    deviations = np.asarray(values, np.float64) - np.mean(values)
    _, rows = np.unique(np.asarray(clusters), return_inverse=True)
    sums = np.bincount(rows, weights=deviations)
    squares = np.bincount(rows, weights=deviations**2)
    within = float((sums**2 - squares).sum()) / len(values) ** 2
    return math.sqrt(max(0.0, mean_stderr(values) ** 2 + within))


def clustered_interval(scores: Sequence[Score], *, unit: str = "image") -> Interval | None:
    """Estimate the 95% interval of the mean value, in percent: Student's t with clusters - 1 degrees of freedom.

    Where all clusters agree on 0 or on 1 the interval is Wilson's for their number. One cluster gives none.

    Args:
        scores: Scores with values in [0, 1]; unscored ones are left out.
        unit: What a cluster is, for the estimator's name.
    """
    known = [(score.value, score.cluster_id) for score in scores if score.value is not None]
    num_clusters = len({cluster for _, cluster in known})
    if num_clusters < 2:
        return None
    values = [value for value, _ in known]
    mean = math.fsum(values) / len(values)
    if mean in (0.0, 1.0):
        low, high = wilson_interval(num_clusters * mean, num_clusters)
        return Interval(100 * low, 100 * high, f"Wilson, {num_clusters} {unit}s that all agree")
    reach = float(stdtrit(num_clusters - 1, 0.975)) * clustered_stderr(values, [cluster for _, cluster in known])
    return Interval(100 * max(0.0, mean - reach), 100 * min(1.0, mean + reach), f"{unit}-clustered standard error")


def group_intervals(scores: Sequence[Score], *, unit: str = "image") -> dict[str, Interval]:
    """Estimate the interval of every group's mean; see `clustered_interval`."""
    groups: dict[str, list[Score]] = {}
    for score in scores:
        groups.setdefault(score.group, []).append(score)
    found = {group: clustered_interval(members, unit=unit) for group, members in groups.items()}
    return {group: interval for group, interval in found.items() if interval is not None}


def bootstrap_counts(
    counts: Mapping[str, Mapping[str, float]], *, seed: int = 0, replicates: int = REPLICATES
) -> dict[str, Floats]:
    """Resample clusters and return the sum of each count in every replicate; empty where nothing can vary.

    Clusters that fill the same counters' categories are resampled among themselves: the part of a counter's name
    before its first `/` is its category. So every replicate has as many clusters of each kind as the data.

    Args:
        counts: Counts by cluster and by counter, e.g. `"popular/yes/no"`.
        seed: Seed of the resampling.
        replicates: Number of replicates.

    Returns:
        An array of length `replicates` by counter.
    """
    clusters = sorted(counts)
    names = sorted({name for row in counts.values() for name in row})
    kinds: dict[tuple[str, ...], list[int]] = {}
    for place, cluster in enumerate(clusters):
        kind = tuple(sorted({name.partition("/")[0] for name in counts[cluster]}))
        kinds.setdefault(kind, []).append(place)
    strata = [np.asarray(members, np.intp) for members in kinds.values()]
    if not strata or not can_vary(strata):
        return {}
    table = np.array([[counts[cluster].get(name, 0.0) for name in names] for cluster in clusters])
    rng = np.random.default_rng(seed)
    sums = np.concatenate([weights @ table for weights in draw_weights(strata, replicates=replicates, rng=rng)])
    return dict(zip(names, sums.T, strict=True))


def scaled(interval: Interval, factor: float) -> Interval:
    """Return an interval in other units."""
    return Interval(factor * interval.low, factor * interval.high, interval.estimator)
