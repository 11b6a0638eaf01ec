"""Rows of a leaderboard: measured results, with published rows laid over where there are any.

A table holds one world. Published rows stand in the world of photographs only, so a number of the embedded world
never shares a table with one of a paper. What nobody measured is a missing value, what was run and could not be scored
is an unscored one; neither is a number. An evaluation that no published table has gets a table of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

from segros_eval.benchmarks.base import Interval, Result, World
from segros_eval.reporting.published import Column, Label, PublishedRow, PublishedTable, Reference

__all__ = [
    "PUBLISHED_WORLD",
    "FilledTable",
    "Row",
    "Value",
    "data_of",
    "filled_tables",
    "is_subset",
    "measured_value",
    "own_columns",
    "value_frame",
]

PUBLISHED_WORLD: World = "photo"
"""The world that published numbers belong to."""
OWN_PAGE = "other"
"""Page of evaluations that no published table has."""


@dataclass(frozen=True)
class Value:
    """A value in a row.

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

    @property
    def missing(self) -> bool:
        """Whether nobody printed or ran it."""
        return self.value is None and not self.unscored


@dataclass(frozen=True)
class Row:
    """One model, published or measured.

    Attributes:
        source: Where the values come from.
        backbone: Name of the card.
        method: Name of the train task, None where a print does not tell.
        data: Name of the training data.
        labels: One per label column of the table.
        values: One per column of the table.
        results: The measured results behind the values, in column order.
        starred: Whether the paper stars the row.
        contaminated: Whether it was trained on data that leaks into one of the table's evaluators.
        subset: Whether a result covers only part of its evaluator's items.
    """

    source: Literal["measured", "published"]
    backbone: str
    method: str | None
    data: str | None
    labels: tuple[Label, ...]
    values: tuple[Value, ...]
    results: tuple[Result, ...] = ()
    starred: bool = False
    contaminated: bool = False
    subset: bool = False


@dataclass(frozen=True)
class FilledTable:
    """A table's structure with the rows of one world."""

    structure: PublishedTable
    world: World
    rows: tuple[Row, ...]

    @property
    def measured(self) -> tuple[Result, ...]:
        """Every result behind the rows."""
        return tuple(result for row in self.rows for result in row.results)


def filled_tables(results: Iterable[Result], reference: Reference) -> tuple[FilledTable, ...]:
    """Sort measured results into tables, one table per world; tables without rows are left out.

    Args:
        results: Measured cells, unique by key.
        reference: Published tables.
    """
    ordered = sorted(results, key=lambda result: (result.world, result.backbone, result.method, result.key))
    worlds: tuple[World, ...] = ("photo", "shapes")
    structures = (*reference.tables, *_own_structures(ordered, reference))
    filled = (_filled(structure, world, ordered, reference) for structure in structures for world in worlds)
    return tuple(table for table in filled if table.rows)


def value_frame(tables: Iterable[FilledTable]) -> pd.DataFrame:
    """Return one line per value, published and measured, with everything that qualifies it.

    Args:
        tables: What to show.
    """
    records = [
        _record(table, row, column, value)
        for table in tables
        for row in table.rows
        for column, value in zip(table.structure.columns, row.values, strict=True)
        if not value.missing
    ]
    frame = pd.DataFrame.from_records(records, columns=RECORD_HEADS)
    return frame.astype(dict.fromkeys(("n", "unparsed", "unscored"), "Int64"))


RECORD_HEADS = (
    *("table", "world", "source", "backbone", "method", "data", "evaluator", "metric", "value", "low", "high"),
    *("estimator", "n", "unparsed", "unscored", "seeds", "protocol", "key"),
    *("starred", "doubted", "contaminated", "subset"),
)


def _record(table: FilledTable, row: Row, column: Column, value: Value) -> dict[str, Any]:
    result = next((result for result in row.results if result.evaluator == column.evaluator), None)
    record = {
        "table": table.structure.name,
        "world": table.world,
        "source": row.source,
        "backbone": row.backbone,
        "method": row.method,
        "data": row.data,
        "evaluator": column.evaluator,
        "metric": column.metric,
        "value": "unscored" if value.unscored else value.value,
        "starred": row.starred or value.starred,
        "doubted": value.doubted,
        "contaminated": row.contaminated,
        "subset": row.subset,
    }
    if value.interval is not None:
        record |= vars(value.interval)
    if result is not None:
        record |= {
            "n": result.num_samples,
            "unparsed": result.num_unparsed,
            "unscored": result.num_unscored,
            "seeds": " ".join(map(str, result.seeds)),
            "protocol": result.protocol,
            "key": result.key,
        }
    return record


def own_columns(results: Sequence[Result]) -> tuple[Column, ...]:
    """Return columns for results of one evaluation: its headline and what carries an interval, else every metric."""
    metrics = dict.fromkeys(metric for result in results for metric in result.metrics)
    certain = {metric for result in results for metric in (result.headline, *result.intervals)}
    shown = [metric for metric in metrics if metric in certain] if any(one.intervals for one in results) else metrics
    evaluator = results[0].evaluator
    return tuple(Column(key=f"{evaluator}/{metric}", title=metric) for metric in shown)


def _own_structures(results: Sequence[Result], reference: Reference) -> Iterator[PublishedTable]:
    """Yield a structure for each evaluation that no published table has."""
    printed = {column.evaluator for table in reference.tables for column in table.columns}
    open_table = reference.table("generation")
    for evaluator in sorted({result.evaluator for result in results} - printed):
        columns = own_columns([result for result in results if result.evaluator == evaluator])
        labels, methods = open_table.labels, open_table.methods
        yield PublishedTable(evaluator, evaluator, OWN_PAGE, "", labels, columns, rows=(), methods=methods)


def data_of(result: Result) -> str | None:
    """Return the name of the training data behind a result, None where nothing was trained or recorded."""
    return result.provenance.get("data")


def is_subset(result: Result) -> bool:
    """Tell whether a result covers only part of its evaluator's items."""
    return bool(result.provenance.get("subset"))


def _filled(published: PublishedTable, world: World, results: Sequence[Result], reference: Reference) -> FilledTable:
    printed = [_printed(row, published, reference) for row in published.rows] if world == PUBLISHED_WORLD else []
    mine = [result for result in results if result.world == world and _belongs(result, published, reference)]
    measured = [_measured(group, published, reference) for group in _models(mine)]
    if published.methods:
        rows = sorted([*printed, *measured], key=lambda row: _order(row, published))
    elif printed or _tells(published, mine, reference):
        rows = _beside(printed, measured, published)
    else:
        rows = []
    return FilledTable(published, world, rows=tuple(rows))


def _belongs(result: Result, table: PublishedTable, reference: Reference) -> bool:
    """Tell whether a table takes a result: an open one all but other tables' ablations, a closed one its own."""
    if not any((column.evaluator, column.metric) in _metrics(result) for column in table.columns):
        return False
    if result.method in table.takes:
        printed = {row.backbone for row in table.rows}
        return bool(table.methods) or not printed or result.backbone in printed or result.world != PUBLISHED_WORLD
    if table not in reference.tables:
        return True
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
    values = tuple(
        Value(
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
        values=values,
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
        values=tuple(measured_value(by_evaluator.get(column.evaluator), column) for column in table.columns),
        results=tuple(by_evaluator[evaluator] for evaluator in order if evaluator in by_evaluator),
        contaminated=_leaks(data_of(first), first.method, table, reference),
        subset=any(is_subset(result) for result in results),
    )


def measured_value(result: Result | None, column: Column) -> Value:
    """Return the value of a column in a result, a missing one where there is none."""
    if result is None or column.metric not in result.metrics:
        return Value()
    value = result.metrics[column.metric]
    return Value(
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
