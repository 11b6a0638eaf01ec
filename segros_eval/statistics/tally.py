"""What a number is made of: sums over the items of each cluster, and their totals under any weights.

Items that share a prompt or a picture succeed and fail together, so a benchmark's number is written as a function of
totals over clusters. All weights 1 give the number itself, the counts of a resample a replicate of it, one weight 0
the number without that cluster, and two runs under the same weights their paired difference.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from segros_eval.benchmarks.base import Metric, Score

__all__ = [
    "Counter",
    "Entry",
    "Floats",
    "Tally",
    "Totals",
    "group_mean",
    "item_mean",
    "item_tally",
    "mean_of_groups",
    "percent",
    "ratio",
    "tabulate",
]

Floats = NDArray[np.float64]
Counter = tuple[str, str]
"""A group of items, and what is summed over them."""
Entry = tuple[str, Counter, float]
"""A cluster, a counter, and what an item of the cluster adds to it."""
Totals = Mapping[Counter, Floats]
"""The sum of each counter in every replicate, [R]."""


@dataclass(frozen=True)
class Tally:
    """Sums by cluster and counter.

    Attributes:
        clusters: Names of the C clusters, in alphabetical order.
        counters: The K counters, in alphabetical order.
        table: [C, K] sums.
        whole: [K] sums over all clusters, in the order of the items.
        strata: Places of the clusters that are resampled among themselves; together they cover every place.
    """

    clusters: tuple[str, ...]
    counters: tuple[Counter, ...]
    table: Floats
    whole: Floats
    strata: tuple[NDArray[np.intp], ...]

    def totals(self, weights: Floats | None = None) -> dict[Counter, Floats]:
        """Return the total of each counter under weights [R, C]; under weights of 1, with R = 1, when None."""
        sums = self.whole[None] if weights is None else weights @ self.table
        return dict(zip(self.counters, sums.T, strict=True))

    def touching(self, groups: Sequence[str]) -> int:
        """Count the clusters with items of some groups; none named stands for all."""
        columns = [place for place, (group, _) in enumerate(self.counters) if not groups or group in groups]
        return int(np.count_nonzero(self.table[:, columns].any(axis=1)))


def tabulate(entries: Iterable[Entry], *, counters: Iterable[Counter] = (), stratified: bool = True) -> Tally:
    """Sum up entries.

    Args:
        entries: What items add.
        counters: Counters that are there whatever the entries.
        stratified: Resample the clusters of each group apart where each lies in one group alone, because a benchmark
            fixes how many clusters a group has; else all clusters together.
    """
    cells: dict[tuple[str, Counter], list[float]] = {}
    whole: dict[Counter, float] = dict.fromkeys(counters, 0.0)
    groups: dict[str, set[str]] = {}
    for cluster, counter, value in entries:
        cells.setdefault((cluster, counter), []).append(value)
        whole[counter] = whole.get(counter, 0.0) + value
        groups.setdefault(cluster, set()).add(counter[0])
    clusters, names = sorted(groups), sorted(whole)
    rows = {name: place for place, name in enumerate(clusters)}
    columns = {name: place for place, name in enumerate(names)}
    table = np.zeros((len(clusters), len(names)))
    for (cluster, counter), members in cells.items():
        # Exact summation, so that the order of the items cannot show in an interval.
        table[rows[cluster], columns[counter]] = math.fsum(members)
    kinds: dict[str, list[int]] = {}
    nested = stratified and all(len(one) == 1 for one in groups.values())
    for cluster, place in rows.items():
        kinds.setdefault(min(groups[cluster]) if nested else "", []).append(place)
    strata = tuple(np.asarray(kinds[kind], np.intp) for kind in sorted(kinds))
    return Tally(tuple(clusters), tuple(names), table, np.array([whole[name] for name in names]), strata)


def item_tally(
    value: Callable[[Score], float | None] = lambda score: score.value, *, stratified: bool = True
) -> Callable[[Sequence[Score]], Tally]:
    """Return a tally of items' values: their sum and count by group, over what has a value.

    Args:
        value: What an item is worth; None leaves it out. A group that was asked for and has no value stays at 0 of 0.
        stratified: See `tabulate`.
    """

    def tally(scores: Sequence[Score]) -> Tally:
        known = ((score, value(score)) for score in scores)
        entries = (
            (score.cluster_id, (score.group, what), part)
            for score, worth in known
            if worth is not None
            for what, part in (("sum", worth), ("count", 1.0))
        )
        counters = {(score.group, what) for score in scores for what in ("sum", "count")}
        return tabulate(entries, counters=counters, stratified=stratified)

    return tally


def percent(score: Score) -> float | None:
    """Return a score's value in percent."""
    return None if score.value is None else 100 * score.value


def ratio(top: Floats | float, bottom: Floats | float) -> Floats:
    """Return quotients [R]; NaN where the divisor is not above 0."""
    above, below = np.broadcast_arrays(np.atleast_1d(np.asarray(top, float)), np.atleast_1d(np.asarray(bottom, float)))
    return np.divide(above, below, out=np.full(above.shape, np.nan), where=below > 0)


def group_mean(totals: Totals, *groups: str) -> Floats:
    """Return the mean over the items of some groups, [R]; of all where none is named."""
    named = groups or dict.fromkeys(group for group, _ in totals)
    sums, counts = (sum((totals.get((group, what), 0.0) for group in named), 0.0) for what in ("sum", "count"))
    return ratio(sums, counts)


def mean_of_groups(totals: Totals, groups: Iterable[str]) -> Floats:
    """Return the unweighted mean of groups' means, [R]; NaN where a group has no item."""
    means = [group_mean(totals, group) for group in groups]
    return ratio(sum(means, 0.0), len(means))


def item_mean(
    name: str,
    tally: Callable[[Sequence[Score]], Tally],
    *groups: str,
    factor: float = 1,
    clusters: str = "",
    interval: Literal["bootstrap", "standard error"] = "bootstrap",
) -> Metric:
    """Return the metric that is a mean over items.

    Args:
        name: Its name.
        tally: An `item_tally`.
        groups: Groups of the items; none for all.
        factor: From the tally's values to percent.
        clusters: What is resampled; empty where no interval is estimated.
        interval: How it is estimated.
    """
    return Metric(
        name,
        tally,
        lambda totals: factor * group_mean(totals, *groups),
        groups=groups,
        clusters=clusters,
        interval=interval,
    )
