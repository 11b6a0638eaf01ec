"""Lay a leaderboard out as tables: columns, counts, marks and the notes that explain them.

Marks: `*` starred by the paper, `†` trained on data that leaks into the benchmark, `‡` only part of the items, `°` read
into the print, `≠` contradicted by the paper's other numbers. Each mark that occurs is explained below its table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from segros_eval.benchmarks.base import Interval, Result
from segros_eval.reporting.published import Column, Label, Reference
from segros_eval.reporting.rows import PUBLISHED_WORLD, FilledTable, Row, Value, data_of, is_subset
from segros_eval.reporting.table import (
    MISSING,
    UNSCORED,
    Cell,
    Head,
    Table,
    interval_text,
    make_table,
    number,
    signed,
)

__all__ = ["agreements", "layout", "value_cell"]

LOST = "(lost)"
FOLDED = ("Unparsed", "Seeds")
"""Counts that go below a table where all measured rows agree."""
WORLD_TITLES = {"photo": "photographs", "shapes": "the embedded world"}
HEADS_OF_CODE = ("Protocol", "Commit", "Key")
WHO = ("UMM", "Method", "Metric")


@dataclass(frozen=True)
class Side:
    """A column beside the values: labels, origin, counts."""

    head: Head
    cells: tuple[Cell, ...]

    @property
    def constant(self) -> str | None:
        """The text that all cells share but for missing ones, or None."""
        texts = {cell.text for cell in self.cells} - {MISSING}
        return texts.pop() if len(texts) == 1 and len(self.cells) > 1 else None


@dataclass(frozen=True)
class Agreement:
    """A measured value beside the published one of the same cell."""

    row: Row
    column: Column
    measured: float
    interval: Interval
    published: float


def layout(tables: Sequence[FilledTable], reference: Reference) -> tuple[Table, ...]:
    """Return every table of a leaderboard, in order: on each page the numbers, then what explains them.

    Args:
        tables: What to show.
        reference: Published numbers.
    """
    compared = agreements(tables)
    found: list[Table] = []
    for page in dict.fromkeys(table.structure.page for table in tables):
        shown = [table for table in tables if table.structure.page == page]
        keys = {(row.backbone, row.method, column.key) for table in shown for row, column in _places(table)}
        found += [_laid_out(table, reference) for table in shown]
        found += _agreement_table(page, [item for item in compared if _key(item.row, item.column) in keys])
        found += _elsewhere_table(page, keys, reference)
        results = {result.key: result for table in shown for result in table.measured}
        found += _results_table(page, tuple(results.values()), reference)
    return tuple(found)


def agreements(tables: Sequence[FilledTable]) -> tuple[Agreement, ...]:
    """Return the values that were both printed and measured, on the same training data and all items.

    A value printed in several tables (Ours heads every ablation) is compared once, in the first of them.
    """
    found: dict[tuple[str, ...], Agreement] = {}
    for table in tables:
        for row in table.rows if table.world == PUBLISHED_WORLD else ():
            printed = table.structure.row(row.backbone, row.method) if row.method else None
            if row.source != "measured" or printed is None or row.subset:
                continue
            if row.method != "none" and row.data != printed.data:
                continue
            for column, mine in zip(table.structure.columns, row.values, strict=True):
                value = printed.cells[column.key].value
                if isinstance(mine.value, float) and mine.interval and isinstance(value, (int, float)):
                    one = Agreement(row, column, mine.value, mine.interval, float(value))
                    found.setdefault((column.key, *(result.key for result in row.results)), one)
    return tuple(found.values())


def value_cell(value: Value, *, printed: bool = False) -> Cell:
    """Return a value as it stands in a table; a headline with its interval.

    Args:
        value: The value.
        printed: Whether it is a print's, whose digits stay as they are.
    """
    if value.unscored:
        return UNSCORED
    marks = ("*" if value.starred else "") + ("≠" if value.doubted else "")
    text = number(value.value, printed=printed) + marks
    sort = float(value.value) if isinstance(value.value, (int, float)) else None
    if value.interval is None:
        return Cell(text, sort=sort)
    shown = interval_text(value.interval)
    return Cell(text, shown if value.headline else "", f"{shown}, {value.interval.estimator}", sort)


def _places(table: FilledTable) -> Iterator[tuple[Row, Column]]:
    return ((row, column) for row in table.rows for column in table.structure.columns)


def _key(row: Row, column: Column) -> tuple[str, str | None, str]:
    return row.backbone, row.method, column.key


def _laid_out(table: FilledTable, reference: Reference) -> Table:
    structure = table.structure
    origin = [_side("Data", table, lambda row: row.data or MISSING)] if structure.methods else []
    if not structure.holds_settings:
        origin.append(_side("Source", table, lambda row: _origin(row, table)))
    counts = _counts(table) if table.measured else []
    same = [side for side in counts if side.head.text in FOLDED and side.constant is not None]
    columns = [
        *_label_sides(table),
        *(side for side in origin if side.constant is None),
        *_value_sides(table),
        *(side for side in counts if side not in same),
    ]
    told = [side for side in (*origin, *same) if side.constant not in (None, MISSING)]
    folded = " ".join(f"{side.head.text}: {side.constant}." for side in told)
    after = f"after {structure.source}" if structure.source else ""
    return make_table(
        f"{structure.name}-{table.world}",
        structure.title if structure.holds_settings else f"{structure.title}, {WORLD_TITLES[table.world]}",
        [side.head for side in columns],
        zip(*(side.cells for side in columns), strict=True),
        kinds=["plain" if structure.holds_settings else row.source for row in table.rows],
        source=structure.source if table.world == PUBLISHED_WORLD else after,
        notes=(*([folded] if folded else []), *_notes(table, reference)),
        page=structure.page,
    )


def _side(head: str, table: FilledTable, text: Callable[[Row], str]) -> Side:
    return Side(Head("", head), tuple(Cell(text(row)) for row in table.rows))


def _origin(row: Row, table: FilledTable) -> str:
    if row.source == "published" or table.structure.methods:
        return row.source
    return f"measured, {row.backbone}"


def _label_sides(table: FilledTable) -> list[Side]:
    last = len(table.structure.labels) - 1
    return [
        Side(
            Head("", _label(head)),
            tuple(Cell(_label(row.labels[i]) + (_row_marks(row) if i == last else "")) for row in table.rows),
        )
        for i, head in enumerate(table.structure.labels)
    ]


def _label(label: Label) -> str:
    return LOST if label.text is None else label.text + ("°" if label.inferred else "")


def _row_marks(row: Row) -> str:
    return ("*" if row.starred else "") + ("†" if row.contaminated else "") + ("‡" if row.subset else "")


def _value_sides(table: FilledTable) -> Iterator[Side]:
    """Yield the columns in which any row has a value: what a world does not ask for is no column."""
    for place, column in enumerate(table.structure.columns):
        values = [row.values[place] for row in table.rows]
        if not all(value.missing for value in values):
            head = Head(column.group, column.title + ("°" if column.inferred else ""), numeric=True)
            printed = [row.source == "published" for row in table.rows]
            yield Side(head, tuple(value_cell(one, printed=by) for one, by in zip(values, printed, strict=True)))


def _counts(table: FilledTable) -> list[Side]:
    heads = ("n", "Unparsed", "Unscored", "Seeds")
    return [
        Side(Head("", head, numeric=True), tuple(_count(row, place) for row in table.rows))
        for place, head in enumerate(heads)
    ]


def _count(row: Row, place: int) -> Cell:
    texts = dict.fromkeys(_count_texts(result)[place] for result in row.results)
    text = " / ".join(texts) or MISSING
    return Cell(text, tone="bad" if place == 2 and any(result.num_unscored for result in row.results) else "")


def _count_texts(result: Result) -> tuple[str, str, str, str]:
    seeds = ", ".join(map(str, result.seeds))
    return str(result.num_samples), str(result.num_unparsed), str(result.num_unscored), seeds


def _notes(table: FilledTable, reference: Reference) -> Iterator[str]:
    if table.world == "shapes":
        yield "Images of the embedded world `shapes`: not comparable with any number on photographs."
    if table.structure.note:
        yield table.structure.note
    yield from _measurement_notes(table.measured)
    frozen = sorted({result.backbone for result in table.measured if result.provenance.get("understanding_is_frozen")})
    if frozen:
        yield (
            f"The language model of {', '.join(frozen)} is frozen: no method changes its answers, which are measured "
            "once and stand with the method that trains nothing."
        )
    if any(row.starred or any(value.starred for value in row.values) for row in table.rows):
        yield f"`*` {reference.star}"
    leaks = {row.data for row in table.rows if row.contaminated and row.data}
    yield from (f"`†` {reference.contamination_notes[data]}" for data in sorted(leaks))
    if any(row.subset for row in table.rows):
        yield "`‡` Only part of the benchmark's items: no number to quote."
    yield from dict.fromkeys(f"`°` {text}" for text in _inferences(table))
    yield from _doubts(table, reference)


def _measurement_notes(results: Sequence[Result]) -> Iterator[str]:
    if not results:
        return
    protocols = sorted({result.protocol for result in results})
    yield f"Measured by {', '.join(f'`{protocol}`' for protocol in protocols)}."
    estimators = sorted({interval.estimator for result in results for interval in result.intervals.values()})
    if estimators:
        yield f"Brackets: 95% interval ({'; '.join(estimators)})."


def _inferences(table: FilledTable) -> Iterator[str]:
    published = table.structure
    yield from (f"{head.text}: {head.inferred}." for head in published.labels if head.inferred)
    yield from (f"{column.title}: {column.inferred}." for column in published.columns if column.inferred)
    yield from (f"{label.text}: {label.inferred}." for row in table.rows for label in row.labels if label.inferred)


def _doubts(table: FilledTable, reference: Reference) -> Iterator[str]:
    if not any(value.doubted for row in table.rows for value in row.values):
        return
    for entry in reference.inconsistencies:
        shown = any((row.backbone, row.method) == (entry.backbone, entry.method) for row in table.rows)
        if shown and entry.table == table.structure.name:
            printed = table.structure.row(entry.backbone, entry.method)
            who = " ".join(label.text or LOST for label in printed.labels) if printed else entry.backbone
            yield f"`≠` {who}: {entry.printed} is printed, the {entry.basis} is {entry.recomputed}."


def _agreement_table(page: str, compared: Sequence[Agreement]) -> Iterator[Table]:
    if compared:
        yield make_table(
            f"{page}-agreement",
            "Measured against published",
            (*WHO, "Measured", "Published", "Difference", "Published value"),
            map(_agreement_cells, compared),
            numeric=("Measured", "Published", "Difference"),
            notes=(
                "Difference: measured minus published, in points. Published values carry no interval of their own.",
            ),
            page=page,
            auxiliary=True,
        )


def _agreement_cells(item: Agreement) -> tuple[str | Cell, ...]:
    past = max(item.interval.low - item.published, item.published - item.interval.high)
    difference = item.measured - item.published
    verdict = Cell("inside the interval", tone="good")
    if past > 0:
        verdict = Cell(f"outside the interval by {number(past)}", tone="bad")
    return (
        item.row.backbone,
        item.row.method or MISSING,
        item.column.key,
        Cell(number(item.measured), interval_text(item.interval), sort=item.measured),
        Cell(number(item.published, printed=True), sort=item.published),
        Cell(signed(f"{difference:+.1f}"), sort=difference),
        verdict,
    )


def _elsewhere_table(page: str, keys: set[tuple[str, str | None, str]], reference: Reference) -> Iterator[Table]:
    rows = []
    for entry in reference.elsewhere:
        if (entry.backbone, entry.method, entry.key) not in keys:
            continue
        printed = (table.row(entry.backbone, entry.method) for table in reference.tables)
        cells = next(row.cells for row in printed if row and entry.key in row.cells)
        texts = (entry.backbone, entry.method, entry.key, number(cells[entry.key].value, printed=True))
        how = "at first hand" if entry.first_hand else "quoted by a third party"
        rows.append((*texts, number(entry.value, printed=True), entry.source, how))
    heads = (*WHO, "This paper", "Elsewhere", "Where", "Read")
    if rows:
        yield make_table(f"{page}-elsewhere", "The same cells elsewhere", heads, rows, page=page, auxiliary=True)


def _results_table(page: str, results: Sequence[Result], reference: Reference) -> Iterator[Table]:
    heads = ("UMM", "Method", "Evaluator", "World", "Data", "Headline", "n", "Unparsed", "Unscored", "Seeds")
    rows = []
    for result in results:
        leak = "†" if reference.leaks(data_of(result), result.method, result.evaluator) else ""
        subset = "‡" if is_subset(result) else ""
        who = (result.backbone, result.method, result.evaluator + leak + subset, result.world, data_of(result))
        code = str(result.provenance.get("commit") or MISSING)[:10]
        value, interval = result.metrics[result.headline], result.intervals.get(result.headline)
        headline = str(value_cell(Value(value, interval, unscored=value is None, headline=True)))
        tail = (result.protocol, code, result.key[:8])
        rows.append((*(part or MISSING for part in who), headline, *_count_texts(result), *tail))
    if rows:
        title = "Behind the measured rows"
        yield make_table(f"{page}-runs", title, (*heads, *HEADS_OF_CODE), rows, page=page, auxiliary=True)
