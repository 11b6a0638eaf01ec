"""Uncertainty of a mean over questions that share a picture: its standard error.

Answers about one picture are right and wrong together. With d_i the deviation of answer i from the mean of n answers
and s their standard deviation, the clustered standard error of a mean adds the products within pictures:

    SE^2 = s^2 / n  +  (1 / n^2)  sum over pictures c of  sum over i != j in c of  d_i d_j.

Source: E. Miller, "Adding error bars to evals", 2024, equation 4, with s over n - 1 as lmms-eval@75571cf computes it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.special import stdtrit
from scipy.stats import binomtest

from segros_eval.benchmarks.base import Interval, Score

__all__ = ["agreed", "clustered_interval", "clustered_stderr", "mean_stderr"]


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
        return agreed(mean, num_clusters, unit=unit)
    reach = float(stdtrit(num_clusters - 1, 0.975)) * clustered_stderr(values, [cluster for _, cluster in known])
    return Interval(100 * max(0.0, mean - reach), 100 * min(1.0, mean + reach), f"{unit}-clustered standard error")


def agreed(share: float, num_clusters: int, *, unit: str) -> Interval:
    """Return the 95% Wilson interval, in percent, of clusters that all agree.

    Args:
        share: What they agree on, 0 or 1.
        num_clusters: Their number.
        unit: What a cluster is, for the estimator's name.
    """
    found = binomtest(round(num_clusters * share), num_clusters).proportion_ci(method="wilson")
    return Interval(100 * found.low, 100 * found.high, f"Wilson, {num_clusters} {unit}s that all agree")
