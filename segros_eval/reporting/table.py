"""Turn standings into sheets of text that every page format lays out in its own way.

Marks in a sheet: `*` starred by the paper, `†` trained on data that leaks into the benchmark, `‡` only
part of the items, `°` read into the print, `≠` contradicted by the paper's other numbers. Each mark that
occurs is explained below its sheet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from segros_eval.benchmarks.base import Interval, Result
from segros_eval.reporting.measured import PUBLISHED_WORLD, Agreement, Cell, Row, Standings, Table, data_of, is_subset
from segros_eval.reporting.published import Column, Label, Reference

__all__ = ["MISSING", "Head", "Sheet", "SheetCell", "SheetRow", "Side", "interval_text", "number", "sheets_of"]

MISSING = "–"
LOST = "(lost)"
FOLDED = ("Unparsed", "Seeds")
"""Counts that go below a table where all measured rows agree."""
WORLD_TITLES = {"photo": "photographs", "shapes": "the embedded world"}


@dataclass(frozen=True)
class Head:
    """The head of a column, with the one that spans it and its neighbours."""

    text: str
    group: str = ""
    numeric: bool = False


@dataclass(frozen=True)
class SheetCell:
    """What stands in a cell.

    Attributes:
        text: The value.
        detail: What qualifies it and is always shown, e.g. its interval.
        hint: What qualifies it and is shown where there is room.
        sort: The value as a number.
        tone: `"good"`, `"bad"` or empty.
    """

    text: str
    detail: str = ""
    hint: str = ""
    sort: float | None = None
    tone: str = ""


@dataclass(frozen=True)
class SheetRow:
    """A line of a sheet; `kind` is `"published"`, `"measured"` or `"plain"`."""

    kind: str
    cells: tuple[SheetCell, ...]


@dataclass(frozen=True)
class Sheet:
    """A table of texts with a title and the notes that explain it."""

    name: str
    page: str
    title: str
    source: str
    heads: tuple[Head, ...]
    rows: tuple[SheetRow, ...]
    notes: tuple[str, ...] = ()

    @property
    def auxiliary(self) -> bool:
        """Whether it explains other sheets of its page."""
        return not self.name.endswith(tuple(WORLD_TITLES))


@dataclass(frozen=True)
class Side:
    """A column beside the values: labels, origin, counts."""

    head: Head
    cells: tuple[SheetCell, ...]

    @property
    def constant(self) -> str | None:
        """The text that all cells share but for missing ones, or None."""
        texts = {cell.text for cell in self.cells} - {MISSING}
        return texts.pop() if len(texts) == 1 and len(self.cells) > 1 else None


def number(value: float | str | None, *, printed: bool = False) -> str:
    """Return a value as shown: a print's as printed, a measured one with one decimal."""
    if value is None:
        return MISSING
    if isinstance(value, str) or printed:
        return str(value)
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.1f}"


def interval_text(interval: Interval) -> str:
    """Return `[low, high]`."""
    return f"[{number(interval.low)}, {number(interval.high)}]".replace("-", "−")


def sheets_of(standings: Standings) -> tuple[Sheet, ...]:
    """Return every sheet of a leaderboard, in order.

    Args:
        standings: What to show.
    """
    tables = [_table_sheet(table, standings.reference) for table in standings.tables]
    pages = dict.fromkeys(sheet.page for sheet in tables)
    sheets: list[Sheet] = []
    for page in pages:
        sheets.extend(sheet for sheet in tables if sheet.page == page)
        shown = [table for table in standings.tables if table.published.page == page]
        keys = {(row.backbone, row.method, column.key) for table in shown for row, column in _cells(table)}
        sheets.extend(_agreement_sheets(page, [item for item in standings.agreements if _key(item) in keys]))
        sheets.extend(_elsewhere_sheets(page, keys, standings.reference))
        results = {result.key: result for table in shown for result in table.measured}
        sheets.extend(_result_sheets(page, tuple(results.values()), standings.reference))
    return tuple(sheets)


def _cells(table: Table) -> Iterator[tuple[Row, Column]]:
    return ((row, column) for row in table.rows for column in table.published.columns)


def _key(agreement: Agreement) -> tuple[str, str | None, str]:
    return agreement.row.backbone, agreement.row.method, agreement.column.key


def _table_sheet(table: Table, reference: Reference) -> Sheet:
    published = table.published
    title = published.title if published.holds_settings else f"{published.title}, {WORLD_TITLES[table.world]}"
    origin = [_side("Data", table, lambda row: row.data or MISSING)] if published.methods else []
    if not published.holds_settings:
        origin.append(_side("Source", table, lambda row: _origin(row, table)))
    kept = [side for side in origin if side.constant is None]
    sides = [*_label_sides(table), *kept]
    counts = _counts(table) if table.measured else []
    same = [side for side in counts if side.head.text in FOLDED and side.constant is not None]
    tails = [side for side in counts if side not in same]
    values = [_value_column(index, table) for index in range(len(published.columns))]
    columns = [*sides, *values, *tails]
    rows = tuple(
        SheetRow(row.source if not published.holds_settings else "plain", tuple(side.cells[i] for side in columns))
        for i, row in enumerate(table.rows)
    )
    told = [side for side in (*origin, *same) if side.constant not in (None, MISSING)]
    folded = " ".join(f"{side.head.text}: {side.constant}." for side in told)
    return Sheet(
        name=f"{published.name}-{table.world}",
        page=published.page,
        title=title,
        source=published.source if table.world == PUBLISHED_WORLD else f"after {published.source}",
        heads=tuple(side.head for side in columns),
        rows=rows,
        notes=(*([folded] if folded else []), *_notes(table, reference)),
    )


def _side(head: str, table: Table, text: Callable[[Row], str]) -> Side:
    return Side(Head(head), tuple(SheetCell(text(row)) for row in table.rows))


def _origin(row: Row, table: Table) -> str:
    if row.source == "published" or table.published.methods:
        return row.source
    return f"measured, {row.backbone}"


def _label_sides(table: Table) -> list[Side]:
    last = len(table.published.labels) - 1
    return [
        Side(
            Head(_label(head)),
            tuple(SheetCell(_label(row.labels[i]) + (_row_marks(row) if i == last else "")) for row in table.rows),
        )
        for i, head in enumerate(table.published.labels)
    ]


def _label(label: Label) -> str:
    return LOST if label.text is None else label.text + ("°" if label.inferred else "")


def _row_marks(row: Row) -> str:
    return ("*" if row.starred else "") + ("†" if row.contaminated else "") + ("‡" if row.subset else "")


def _value_column(index: int, table: Table) -> Side:
    column = table.published.columns[index]
    head = Head(column.title + ("°" if column.inferred else ""), column.group, numeric=True)
    return Side(head, tuple(_value(row.cells[index], printed=row.source == "published") for row in table.rows))


def _value(cell: Cell, *, printed: bool) -> SheetCell:
    if cell.unscored:
        return SheetCell("unscored", tone="bad")
    marks = ("*" if cell.starred else "") + ("≠" if cell.doubted else "")
    text = number(cell.value, printed=printed) + marks
    sort = float(cell.value) if isinstance(cell.value, (int, float)) else None
    if cell.interval is None:
        return SheetCell(text, sort=sort)
    shown = interval_text(cell.interval)
    return SheetCell(text, detail=shown if cell.headline else "", hint=f"{shown}, {cell.interval.estimator}", sort=sort)


def _counts(table: Table) -> list[Side]:
    heads = ("n", "Unparsed", "Unscored", "Seeds")
    return [
        Side(Head(head, numeric=True), tuple(_count(row, place) for row in table.rows))
        for place, head in enumerate(heads)
    ]


def _count(row: Row, place: int) -> SheetCell:
    texts = dict.fromkeys(_count_texts(result)[place] for result in row.results)
    text = " / ".join(texts) or MISSING
    return SheetCell(text, tone="bad" if place == 2 and any(result.num_unscored for result in row.results) else "")


def _count_texts(result: Result) -> tuple[str, str, str, str]:
    seeds = ", ".join(map(str, result.seeds))
    return str(result.num_samples), str(result.num_unparsed), str(result.num_unscored), seeds


def _notes(table: Table, reference: Reference) -> Iterator[str]:
    if table.world == "shapes":
        yield "Images of the embedded world `shapes`: not comparable with any number on photographs."
    if table.published.note:
        yield table.published.note
    yield from _measurement_notes(table.measured)
    frozen = sorted({result.backbone for result in table.measured if result.provenance.get("understanding_is_frozen")})
    if frozen:
        yield (
            f"The language model of {', '.join(frozen)} is frozen: no method changes its answers, which are measured "
            "once and stand with the method that trains nothing."
        )
    if any(row.starred or any(cell.starred for cell in row.cells) for row in table.rows):
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


def _inferences(table: Table) -> Iterator[str]:
    published = table.published
    yield from (f"{head.text}: {head.inferred}." for head in published.labels if head.inferred)
    yield from (f"{column.title}: {column.inferred}." for column in published.columns if column.inferred)
    yield from (f"{label.text}: {label.inferred}." for row in table.rows for label in row.labels if label.inferred)


def _doubts(table: Table, reference: Reference) -> Iterator[str]:
    if not any(cell.doubted for row in table.rows for cell in row.cells):
        return
    for entry in reference.inconsistencies:
        shown = any((row.backbone, row.method) == (entry.backbone, entry.method) for row in table.rows)
        if shown and entry.table == table.published.name:
            printed = table.published.row(entry.backbone, entry.method)
            who = " ".join(label.text or LOST for label in printed.labels) if printed else entry.backbone
            yield f"`≠` {who}: {entry.printed} is printed, the {entry.basis} is {entry.recomputed}."


def _agreement_sheets(page: str, agreements: Sequence[Agreement]) -> Iterator[Sheet]:
    if not agreements:
        return
    heads = ("UMM", "Method", "Metric", "Measured", "Published", "Difference", "Published value")
    yield Sheet(
        name=f"{page}-agreement",
        page=page,
        title="Measured against published",
        source="",
        heads=tuple(Head(head, numeric=i in (3, 4, 5)) for i, head in enumerate(heads)),
        rows=tuple(_agreement_row(agreement) for agreement in agreements),
        notes=("Difference: measured minus published, in points. Published values carry no interval of their own.",),
    )


def _agreement_row(agreement: Agreement) -> SheetRow:
    row, low, high = agreement.row, agreement.interval.low, agreement.interval.high
    past = max(low - agreement.published, agreement.published - high)
    verdict = SheetCell("inside the interval", tone="good")
    if not agreement.within:
        verdict = SheetCell(f"outside the interval by {number(past)}", tone="bad")
    cells = (
        SheetCell(row.backbone),
        SheetCell(row.method or MISSING),
        SheetCell(agreement.column.key),
        SheetCell(number(agreement.measured), interval_text(agreement.interval), sort=agreement.measured),
        SheetCell(number(agreement.published, printed=True), sort=agreement.published),
        SheetCell(f"{agreement.difference:+.1f}".replace("-", "−"), sort=agreement.difference),
        verdict,
    )
    return SheetRow("plain", cells)


def _elsewhere_sheets(page: str, keys: set[tuple[str, str | None, str]], reference: Reference) -> Iterator[Sheet]:
    entries = [entry for entry in reference.elsewhere if (entry.backbone, entry.method, entry.key) in keys]
    if not entries:
        return
    rows = []
    for entry in entries:
        printed = (table.row(entry.backbone, entry.method) for table in reference.tables)
        cells = next(row.cells for row in printed if row and entry.key in row.cells)
        texts = (entry.backbone, entry.method, entry.key, number(cells[entry.key].value, printed=True))
        how = "at first hand" if entry.first_hand else "quoted by a third party"
        rows.append((*texts, number(entry.value, printed=True), entry.source, how))
    heads = ("UMM", "Method", "Metric", "This paper", "Elsewhere", "Where", "Read")
    yield _plain(f"{page}-elsewhere", page, "The same cells elsewhere", heads, rows)


def _result_sheets(page: str, results: Sequence[Result], reference: Reference) -> Iterator[Sheet]:
    heads = ("UMM", "Method", "Evaluator", "World", "Data", "Headline", "n", "Unparsed", "Unscored", "Seeds")
    heads_of_code = ("Protocol", "Commit", "Key")
    rows = []
    for result in results:
        leak = "†" if reference.leaks(data_of(result), result.method, result.evaluator) else ""
        subset = "‡" if is_subset(result) else ""
        who = (result.backbone, result.method, result.evaluator + leak + subset, result.world, data_of(result))
        code = str(result.provenance.get("commit") or MISSING)[:10]
        tail = (result.protocol, code, result.key[:8])
        rows.append((*(part or MISSING for part in who), _headline(result), *_count_texts(result), *tail))
    if rows:
        yield _plain(f"{page}-runs", page, "Behind the measured rows", (*heads, *heads_of_code), rows)


def _headline(result: Result) -> str:
    value = result.metrics[result.headline]
    interval = result.intervals.get(result.headline)
    text = "unscored" if value is None else number(value)
    return f"{text} {interval_text(interval)}" if interval and value is not None else text


def _plain(name: str, page: str, title: str, heads: Sequence[str], rows: Iterable[Sequence[str]]) -> Sheet:
    lines = tuple(SheetRow("plain", tuple(SheetCell(text) for text in row)) for row in rows)
    return Sheet(name, page, title, "", tuple(Head(head) for head in heads), lines)
