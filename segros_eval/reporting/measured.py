"""Put measured results into the published tables' structure.

A table holds one world. Published rows stand in the world of photographs only, so a number of the
embedded world never shares a table with one of a paper. What nobody measured is a missing cell,
what was run and could not be scored is an unscored one; neither is a value.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from segros_eval.benchmarks.base import Interval, Result, World
from segros_eval.reporting.published import Column, Label, PublishedRow, PublishedTable, Reference

__all__ = [
    "PUBLISHED_WORLD",
    "Agreement",
    "Cell",
    "Row",
    "Standings",
    "Table",
    "build_standings",
    "data_of",
    "is_subset",
]

PUBLISHED_WORLD: World = "photo"
"""The world that published numbers belong to."""


@dataclass(frozen=True)
class Cell:
    """A value in a table.

    Attributes:
        value: A number, a setting's text, or None.
        interval: Its 95% interval, where one is estimated.
        unscored: Whether it was run and has no value.
        starred: Whether the paper stars it.
        doubted: Whether the paper's own other numbers contradict it.
        headline: Whether it is its evaluator's first metric.
    """

    value: float | str | None = None
    interval: Interval | None = None
    unscored: bool = False
    starred: bool = False
    doubted: bool = False
    headline: bool = False


@dataclass(frozen=True)
class Row:
    """One model, published or measured.

    Attributes:
        source: Where the values come from.
        backbone: Name of the card.
        method: Name of the train task, None where a print does not tell.
        data: Name of the training data.
        labels: One per label column of the table.
        cells: One per column of the table.
        results: The measured results behind the cells, in column order.
        starred: Whether the paper stars the row.
        contaminated: Whether it was trained on data that leaks into one of the table's evaluators.
        subset: Whether a result covers only part of its evaluator's items.
    """

    source: Literal["measured", "published"]
    backbone: str
    method: str | None
    data: str | None
    labels: tuple[Label, ...]
    cells: tuple[Cell, ...]
    results: tuple[Result, ...] = ()
    starred: bool = False
    contaminated: bool = False
    subset: bool = False


@dataclass(frozen=True)
class Table:
    """A published table's structure with the rows of one world."""

    published: PublishedTable
    world: World
    rows: tuple[Row, ...]

    @property
    def measured(self) -> tuple[Result, ...]:
        """Every result behind the rows."""
        return tuple(result for row in self.rows for result in row.results)


@dataclass(frozen=True)
class Agreement:
    """A measured value beside the published one of the same cell."""

    row: Row
    column: Column
    measured: float
    interval: Interval
    published: float

    @property
    def difference(self) -> float:
        """Measured minus published, in points."""
        return self.measured - self.published

    @property
    def within(self) -> bool:
        """Whether the published value lies in the measured interval."""
        return self.interval.low <= self.published <= self.interval.high


@dataclass(frozen=True)
class Standings:
    """Everything a leaderboard shows, before it takes a format."""

    reference: Reference
    tables: tuple[Table, ...]
    agreements: tuple[Agreement, ...]
    results: tuple[Result, ...]


def build_standings(results: Iterable[Result], reference: Reference) -> Standings:
    """Sort measured results into the published tables, one table per world.

    Args:
        results: Measured cells, unique by key.
        reference: Published tables.
    """
    ordered = tuple(sorted(results, key=lambda result: (result.world, result.backbone, result.method, result.key)))
    worlds: tuple[World, ...] = ("photo", "shapes")
    tables = tuple(
        table
        for published in reference.tables
        for world in worlds
        if (table := _table(published, world, ordered, reference)).rows
    )
    # A cell printed in several tables (Ours heads every ablation) is compared once, in the first of them.
    agreements: dict[tuple[str, ...], Agreement] = {}
    for agreement in (agreement for table in tables for agreement in _agreements(table)):
        keys = (result.key for result in agreement.row.results)
        agreements.setdefault((agreement.column.key, *keys), agreement)
    return Standings(reference=reference, tables=tables, agreements=tuple(agreements.values()), results=ordered)


def data_of(result: Result) -> str | None:
    """Return the name of the training data behind a result, None where nothing was trained or recorded."""
    return result.provenance.get("data")


def is_subset(result: Result) -> bool:
    """Tell whether a result covers only part of its evaluator's items."""
    return bool(result.provenance.get("subset"))


def _table(published: PublishedTable, world: World, results: Sequence[Result], reference: Reference) -> Table:
    printed = [_printed(row, published, reference) for row in published.rows] if world == PUBLISHED_WORLD else []
    mine = [result for result in results if result.world == world and _belongs(result, published, reference)]
    measured = [_measured(group, published, reference) for group in _models(mine)]
    if published.methods:
        rows = sorted([*printed, *measured], key=lambda row: _order(row, published))
    elif printed or _tells(published, mine, reference):
        rows = _beside(printed, measured, published)
    else:
        rows = []
    return Table(published=published, world=world, rows=tuple(rows))


def _belongs(result: Result, table: PublishedTable, reference: Reference) -> bool:
    """Tell whether a table takes a result: an open one all but other tables' ablations, a closed one its own."""
    if not any((column.evaluator, column.metric) in _metrics(result) for column in table.columns):
        return False
    if result.method in table.takes:
        printed = {row.backbone for row in table.rows}
        return bool(table.methods) or not printed or result.backbone in printed or result.world != PUBLISHED_WORLD
    ablations = {method for other in reference.tables if not other.methods for method in other.takes}
    return bool(table.methods) and result.method not in ablations


def _tells(table: PublishedTable, results: Sequence[Result], reference: Reference) -> bool:
    """Tell whether results fill a closed table, or hold a method that no open table orders."""
    measured = {result.method for result in results}
    ordered = {method for other in reference.tables for method in other.methods}
    printed = {row.method for row in table.rows if row.method}
    return bool(measured - ordered) or bool(printed and printed <= measured)


def _metrics(result: Result) -> set[tuple[str, str]]:
    return {(result.evaluator, metric) for metric in result.metrics}


def _beside(printed: Sequence[Row], measured: Sequence[Row], table: PublishedTable) -> list[Row]:
    """Keep the order of print, each printed row followed by the measured rows of its method."""
    rows: list[Row] = []
    left = sorted(measured, key=lambda row: (table.takes.index(row.method or ""), row.backbone))
    for row in printed:
        rows.append(row)
        rows.extend(mine for mine in left if mine.method == row.method)
        left = [mine for mine in left if mine.method != row.method]
    return [*rows, *left]


def _models(results: Sequence[Result]) -> Iterator[tuple[Result, ...]]:
    """Yield the results of one trained model together, one result per evaluator."""
    groups: dict[tuple[str | None, ...], list[Result]] = {}
    for result in results:
        run = result.provenance.get("run")
        groups.setdefault((result.backbone, result.method, data_of(result), run), []).append(result)
    for group in groups.values():
        left = group
        while left:
            first = {result.evaluator: result for result in reversed(left)}
            yield tuple(first.values())
            left = [result for result in left if result is not first[result.evaluator]]


def _printed(row: PublishedRow, table: PublishedTable, reference: Reference) -> Row:
    doubted = {
        entry.key
        for entry in reference.inconsistencies
        if (entry.table, entry.backbone, entry.method) == (table.name, row.backbone, row.method)
    }
    cells = tuple(
        Cell(
            value=row.cells[column.key].value,
            starred=row.cells[column.key].starred,
            doubted=column.key in doubted,
            headline=column.metric == "overall",
        )
        for column in table.columns
    )
    return Row(
        source="published",
        backbone=row.backbone,
        method=row.method,
        data=row.data,
        labels=row.labels,
        cells=cells,
        starred=row.starred,
        contaminated=_leaks(row.data, row.method, table, reference),
    )


def _measured(results: tuple[Result, ...], table: PublishedTable, reference: Reference) -> Row:
    first = results[0]
    by_evaluator = {result.evaluator: result for result in results}
    order = dict.fromkeys(column.evaluator for column in table.columns)
    return Row(
        source="measured",
        backbone=first.backbone,
        method=first.method,
        data=data_of(first),
        labels=_labels(first, table, reference),
        cells=tuple(_cell(by_evaluator.get(column.evaluator), column) for column in table.columns),
        results=tuple(by_evaluator[evaluator] for evaluator in order if evaluator in by_evaluator),
        contaminated=_leaks(data_of(first), first.method, table, reference),
        subset=any(is_subset(result) for result in results),
    )


def _cell(result: Result | None, column: Column) -> Cell:
    if result is None or column.metric not in result.metrics:
        return Cell()
    value = result.metrics[column.metric]
    return Cell(
        value=value,
        interval=result.intervals.get(column.metric),
        unscored=value is None,
        headline=column.metric == result.headline,
    )


def _labels(result: Result, table: PublishedTable, reference: Reference) -> tuple[Label, ...]:
    """Return a measured row's labels: those of the printed row of its method, else titles of backbone and method."""
    if not table.methods:
        printed = (row.labels for row in table.rows if row.method == result.method)
        return next(printed, None) or table.also[result.method]
    titles = {row.backbone: row.labels[0] for row in table.rows}
    ways = {row.method: row.labels[-1] for row in reference.table("generation").rows}
    ablated = {row.method: row.labels[0] for row in reference.table("loss-targets").rows}
    backbone = titles.get(result.backbone, Label(result.backbone))
    return backbone, ways.get(result.method) or ablated.get(result.method) or Label(result.method)


def _leaks(data: str | None, method: str | None, table: PublishedTable, reference: Reference) -> bool:
    return any(reference.leaks(data, method, column.evaluator) for column in table.columns)


def _order(row: Row, table: PublishedTable) -> tuple[int, str, int, bool, str]:
    backbones = list(dict.fromkeys(printed.backbone for printed in table.rows))
    methods: list[str | None] = list(table.methods) or list(dict.fromkeys(printed.method for printed in table.rows))
    place = backbones.index(row.backbone) if row.backbone in backbones else len(backbones)
    rank = methods.index(row.method) if row.method in methods else len(methods)
    return place, row.backbone, rank, row.source == "measured", row.method or ""


def _agreements(table: Table) -> Iterator[Agreement]:
    """Yield the cells that were both printed and measured, on the same training data and all items."""
    if table.world != PUBLISHED_WORLD:
        return
    for row in table.rows:
        printed = table.published.row(row.backbone, row.method) if row.method else None
        if row.source != "measured" or printed is None or row.subset:
            continue
        if row.method != "none" and row.data != printed.data:
            continue
        for column, cell in zip(table.published.columns, row.cells, strict=True):
            value = printed.cells[column.key].value
            if isinstance(cell.value, float) and cell.interval and isinstance(value, (int, float)):
                yield Agreement(row, column, cell.value, cell.interval, float(value))
