"""Uncertainty of benchmark numbers: how far a mean, or a difference of two runs, could be chance.

Items that share a prompt or a picture succeed and fail together, so the unit that is resampled is the
cluster, never the item. Where a benchmark fixes how many clusters each group (tag, category) has, they
are resampled group by group. Of a stratum's n clusters n - 1 are drawn with replacement, which makes the
replicates' variance unbiased for few clusters too; a stratum of one cluster says nothing about spread.

Source: P. McCarthy and C. Snowden, "The bootstrap and finite population sampling", 1985 (n - 1 draws);
E. B. Wilson, 1927 (interval of a share); Q. McNemar, 1947 (paired binary outcomes).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segros_eval.benchmarks.base import Interval, Score

__all__ = [
    "REPLICATES",
    "Aggregate",
    "Difference",
    "Floats",
    "Totals",
    "bootstrap_intervals",
    "can_vary",
    "draw_weights",
    "macro_mean",
    "mcnemar_exact",
    "paired_difference",
    "pooled_mean",
    "replicate_interval",
    "wilson_interval",
]

Floats = NDArray[np.float64]

REPLICATES = 10_000
_BLOCK = 1_000
_Z95 = 1.959963984540054


@dataclass(frozen=True)
class Totals:
    """Sums and counts of the items of each group, in every replicate.

    Attributes:
        groups: Names of the G groups, in alphabetical order.
        sums: [R, G] sums of values.
        counts: [R, G] numbers of items.
    """

    groups: tuple[str, ...]
    sums: Floats
    counts: Floats

    @property
    def means(self) -> Floats:
        """Return the groups' means, [R, G]; NaN where a replicate has no item of the group."""
        return np.divide(self.sums, self.counts, out=np.full_like(self.sums, np.nan), where=self.counts > 0)


Aggregate = Callable[[Totals], Floats]
"""Turn totals into one number per replicate, [R]."""


@dataclass(frozen=True)
class Difference:
    """How much run A exceeds run B on the items both have scored.

    Attributes:
        estimate: The difference of the aggregates, in percentage points.
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


def macro_mean(totals: Totals) -> Floats:
    """Return the unweighted mean of the groups' means."""
    return totals.means.mean(axis=1)


def pooled_mean(totals: Totals) -> Floats:
    """Return the mean over the items of all groups."""
    return totals.sums.sum(axis=1) / totals.counts.sum(axis=1)


def bootstrap_intervals(
    scores: Sequence[Score],
    metrics: Mapping[str, Aggregate],
    *,
    seed: int = 0,
    replicates: int = REPLICATES,
    stratified: bool = True,
    unit: str = "prompt",
) -> dict[str, Interval]:
    """Estimate 95% percentile intervals of metrics and of every group's mean, in percent.

    Where all clusters agree on 0 or on 1 a bootstrap has nothing to vary; the interval is then Wilson's for the
    number of clusters, and says so. What cannot be estimated (one cluster in a stratum, no scored item) is left
    out. The order of `scores` changes nothing.

    Args:
        scores: Scores of distinct items with values in [0, 1]; unscored ones are left out.
        metrics: Aggregates by name.
        seed: Seed of the resampling.
        replicates: Number of replicates.
        stratified: Resample the clusters of each group apart; else all clusters together.
        unit: What a cluster is, for the estimator's name.

    Returns:
        An interval by metric and by group.

    Raises:
        ValueError: If two scores are of one item, or a cluster of a stratified bootstrap lies in two groups.
    """
    values = {item: score for item, score in _by_item(scores).items() if score.value is not None}
    if not values:
        return {}
    table = _tabulate(values, {item: score.value for item, score in values.items()})
    strata = table.strata(stratified=stratified)
    (drawn,) = _resampled([table], strata, replicates=replicates, rng=np.random.default_rng(seed))
    estimator = f"{unit}-clustered bootstrap, {replicates} replicates"
    intervals = {}
    for name, aggregate in metrics.items() if can_vary(strata) else ():
        intervals[name] = replicate_interval(aggregate(drawn), estimator, num_clusters=len(table.clusters), unit=unit)
    for column, group in enumerate(table.groups):
        num_clusters = int(np.count_nonzero(table.counts[:, column]))
        intervals[group] = replicate_interval(drawn.means[:, column], estimator, num_clusters=num_clusters, unit=unit)
    return {name: interval for name, interval in intervals.items() if interval is not None}


def paired_difference(
    a: Sequence[Score],
    b: Sequence[Score],
    *,
    aggregate: Aggregate = macro_mean,
    seed: int = 0,
    replicates: int = REPLICATES,
    stratified: bool = True,
    unit: str = "prompt",
) -> Difference:
    """Compare two runs on the items that both have scored, resampling the clusters of both alike.

    Args:
        a: Scores of run A, of distinct items.
        b: Scores of run B.
        aggregate: What is compared; by default the mean of the groups' means.
        seed: Seed of the resampling.
        replicates: Number of replicates.
        stratified: Resample the clusters of each group apart; else all clusters together.
        unit: What a cluster is, for the estimator's name.

    Raises:
        ValueError: If the runs share no scored item, or disagree on an item's cluster or group.
    """
    runs = _by_item(a), _by_item(b)
    scored = [{item for item, score in run.items() if score.value is not None} for run in runs]
    shared = scored[0] & scored[1]
    if not shared:
        raise ValueError(f"The runs share no scored item: {len(scored[0])} are scored in A, {len(scored[1])} in B.")
    _check_alike(runs[0], runs[1], shared)
    of_a, of_b = ({item: run[item].value for item in shared} for run in runs)
    layout = {item: runs[0][item] for item in shared}
    tables = [_tabulate(layout, of_a), _tabulate(layout, of_b)]
    strata = tables[0].strata(stratified=stratified)
    interval = None
    if can_vary(strata):
        drawn_a, drawn_b = _resampled(tables, strata, replicates=replicates, rng=np.random.default_rng(seed))
        estimator = f"paired {unit}-clustered bootstrap, {replicates} replicates"
        interval = _percentiles(aggregate(drawn_a) - aggregate(drawn_b), estimator)
    estimate = aggregate(tables[0].totals()) - aggregate(tables[1].totals())
    only_a, only_b, p = _discordance(of_a, of_b)
    return Difference(
        estimate=100 * float(estimate[0]),
        interval=interval,
        num_items=len(shared),
        num_left_out=len(runs[0].keys() | runs[1].keys()) - len(shared),
        only_a=only_a,
        only_b=only_b,
        mcnemar_p=p,
    )


def mcnemar_exact(only_a: int, only_b: int) -> float:
    """Return the two-sided p value of McNemar's exact test: are discordant items split like fair coins?

    Args:
        only_a: Items right in A alone.
        only_b: Items right in B alone.
    """
    total, fewer = only_a + only_b, min(only_a, only_b)
    tail = sum(math.comb(total, k) for k in range(fewer + 1))
    return min(1.0, 2 * tail / 2**total)


def wilson_interval(num_right: float, total: int) -> tuple[float, float]:
    """Return the 95% Wilson interval of a share, in [0, 1].

    Args:
        num_right: Successes, at most `total`.
        total: Independent trials, at least 1.
    """
    share, z2 = num_right / total, _Z95**2
    centre = (share + z2 / (2 * total)) / (1 + z2 / total)
    half = _Z95 * math.sqrt(share * (1 - share) / total + z2 / (4 * total**2)) / (1 + z2 / total)
    # The ends are exact: a rounding error would leave a share of 0 or 1 outside its own interval.
    low = centre - half if num_right > 0 else 0.0
    high = centre + half if num_right < total else 1.0
    return low, high


@dataclass(frozen=True)
class _Table:
    """Sums and counts of values, [clusters, groups], clusters and groups in alphabetical order."""

    clusters: tuple[str, ...]
    groups: tuple[str, ...]
    sums: Floats
    counts: Floats

    def totals(self, weights: Floats | None = None) -> Totals:
        """Return the totals of every row of `weights` [R, clusters]; of the clusters as they are when None."""
        rows = np.ones((1, len(self.clusters))) if weights is None else weights
        return Totals(self.groups, rows @ self.sums, rows @ self.counts)

    def strata(self, *, stratified: bool) -> list[NDArray[np.intp]]:
        """Return the rows of the clusters that are resampled together."""
        if not stratified:
            return [np.arange(len(self.clusters))]
        spread = [name for name, row in zip(self.clusters, self.counts, strict=True) if np.count_nonzero(row) > 1]
        if spread:
            raise ValueError(
                f"Clusters lie in several groups, e.g. {spread[0]!r}: resample them with stratified=False."
            )
        return [np.flatnonzero(column) for column in self.counts.T]


def _by_item(scores: Sequence[Score]) -> dict[str, Score]:
    items = {score.item_id: score for score in scores}
    if len(items) < len(scores):
        raise ValueError(f"{len(scores) - len(items)} scores are of items that another score is of.")
    return items


def _check_alike(a: Mapping[str, Score], b: Mapping[str, Score], items: Iterable[str]) -> None:
    for item in sorted(items):
        places = [(run[item].cluster_id, run[item].group) for run in (a, b)]
        if places[0] != places[1]:
            raise ValueError(f"Item {item!r} lies in (cluster, group) {places[0]} in A and in {places[1]} in B.")


def _tabulate(layout: Mapping[str, Score], values: Mapping[str, float | None]) -> _Table:
    cells: dict[tuple[str, str], list[float]] = {}
    for item, score in layout.items():
        value = values[item]
        assert value is not None
        cells.setdefault((score.cluster_id, score.group), []).append(value)
    clusters = sorted({cluster for cluster, _ in cells})
    groups = sorted({group for _, group in cells})
    rows, columns = ({name: index for index, name in enumerate(names)} for names in (clusters, groups))
    sums, counts = np.zeros((2, len(clusters), len(groups)))
    for (cluster, group), members in cells.items():
        # Exact summation, so that the order of the items cannot show.
        sums[rows[cluster], columns[group]] = math.fsum(members)
        counts[rows[cluster], columns[group]] = len(members)
    return _Table(tuple(clusters), tuple(groups), sums, counts)


def _resampled(
    tables: Sequence[_Table], strata: Sequence[NDArray[np.intp]], *, replicates: int, rng: np.random.Generator
) -> list[Totals]:
    """Return the totals of each table over the same draws of clusters."""
    blocks: list[list[Totals]] = [[] for _ in tables]
    for weights in draw_weights(strata, replicates=replicates, rng=rng):
        for block, table in zip(blocks, tables, strict=True):
            block.append(table.totals(weights))
    return [
        Totals(
            table.groups,
            np.concatenate([part.sums for part in block]),
            np.concatenate([part.counts for part in block]),
        )
        for block, table in zip(blocks, tables, strict=True)
    ]


def draw_weights(strata: Sequence[NDArray[np.intp]], *, replicates: int, rng: np.random.Generator) -> Iterator[Floats]:
    """Yield how often each cluster is drawn, [block, clusters], in blocks of replicates.

    Args:
        strata: Places of the clusters that are resampled among themselves; together they cover every place.
        replicates: Number of replicates.
        rng: Source of the draws.
    """
    num_clusters = sum(map(len, strata))
    for start in range(0, replicates, _BLOCK):
        weights = np.zeros((min(_BLOCK, replicates - start), num_clusters))
        for members in strata:
            chances = np.full(len(members), 1 / len(members))
            weights[:, members] = rng.multinomial(len(members) - 1, chances, size=len(weights))
        yield weights


def can_vary(strata: Sequence[NDArray[np.intp]]) -> bool:
    """Tell whether every stratum has clusters to choose from; one alone says nothing about spread."""
    return all(len(members) > 1 for members in strata)


def _percentiles(values: Floats, estimator: str) -> Interval | None:
    finite = values[np.isfinite(values)]
    if not finite.size:
        return None
    low, high = np.percentile(100 * finite, (2.5, 97.5))
    return Interval(float(low), float(high), estimator)


def replicate_interval(values: Floats, estimator: str, *, num_clusters: int, unit: str) -> Interval | None:
    """Return the 95% percentile interval of replicates, in percent; Wilson's where all of them are 0 or all 1.

    Args:
        values: [R] replicates; those that are not finite are left out.
        estimator: Name of the estimator.
        num_clusters: Number of clusters behind them.
        unit: What a cluster is.
    """
    interval = _percentiles(values, estimator)
    if interval is None or interval.low < interval.high or interval.low not in (0.0, 100.0):
        return interval
    low, high = wilson_interval(num_clusters * interval.low / 100, num_clusters)
    return Interval(100 * low, 100 * high, f"Wilson, {num_clusters} {unit}s that all agree")


def _discordance(
    a: Mapping[str, float | None], b: Mapping[str, float | None]
) -> tuple[int | None, int | None, float | None]:
    if not {*a.values(), *b.values()} <= {0.0, 1.0}:
        return None, None, None
    only_a = sum(a[item] == 1.0 and b[item] == 0.0 for item in a)
    only_b = sum(b[item] == 1.0 and a[item] == 0.0 for item in a)
    return only_a, only_b, mcnemar_exact(only_a, only_b)
