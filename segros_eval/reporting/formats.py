"""Lay out a leaderboard as Markdown, HTML, CSV or JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from segros_eval.reporting import html
from segros_eval.reporting.measured import Cell, Row, Standings, Table
from segros_eval.reporting.published import Column
from segros_eval.reporting.table import MISSING, Head, Sheet, SheetRow, sheets_of

__all__ = ["render_csv", "render_html", "render_json", "render_markdown", "sheet_markdown"]

CSV_HEADS = (
    "table",
    "world",
    "source",
    "backbone",
    "method",
    "data",
    "evaluator",
    "metric",
    "value",
    "low",
    "high",
    "estimator",
    "n",
    "unparsed",
    "unscored",
    "seeds",
    "protocol",
    "key",
    "starred",
    "doubted",
    "contaminated",
    "subset",
)


def render_markdown(standings: Standings, *, page: str | None = None) -> str:
    """Return a leaderboard as Markdown.

    Args:
        standings: What to show.
        page: Name of one page; None for all.
    """
    sheets = [sheet for sheet in sheets_of(standings) if page in (None, sheet.page)]
    return "\n\n".join(sheet_markdown(sheet) for sheet in sheets) + "\n"


def sheet_markdown(sheet: Sheet, *, level: int = 2) -> str:
    """Return a sheet as a Markdown section: published rows in italics, measured headlines in bold."""
    source = f" ({sheet.source})" if sheet.source else ""
    heads = [_head(head, sheet.heads[:i]) for i, head in enumerate(sheet.heads)]
    rules = ["---:" if head.numeric else "---" for head in sheet.heads]
    lines = [_line(heads), _line(rules), *(_line(_texts(row)) for row in sheet.rows)]
    parts = [f"{'#' * level} {sheet.title}{source}", "\n".join(lines)]
    if sheet.notes:
        parts.append("\n".join(f"- {note}" for note in sheet.notes))
    return "\n\n".join(parts)


def _head(head: Head, before: Sequence[Head]) -> str:
    """Name the group in the head of its first column, for Markdown has no spanning heads."""
    first = head.group and (not before or before[-1].group != head.group)
    return f"{head.group}: {head.text}" if first else head.text


def _texts(row: SheetRow) -> Iterator[str]:
    for cell in row.cells:
        text = cell.text.replace("|", "\\|").replace("*", "\\*")
        if row.kind == "published" and cell.text != MISSING:
            yield f"_{text}_"
        else:
            yield f"**{text}** {cell.detail}" if cell.detail else text


def _line(texts: Iterable[str]) -> str:
    return f"| {' | '.join(texts)} |"


def render_html(standings: Standings) -> str:
    """Return a leaderboard as one self-contained page.

    Args:
        standings: What to show.
    """
    measured = len({(result.backbone, result.method) for result in standings.results})
    lead = (
        f"{measured} measured models beside the numbers of “{standings.reference.paper}”. "
        "Published rows are grey. Click a head to sort; point at a value for its interval."
    )
    sections = [html.section(sheet) for sheet in sheets_of(standings)]
    return html.document("SeGroS leaderboard", lead=lead, sections=sections)


def render_csv(standings: Standings) -> str:
    """Return one line per value, published and measured, with everything that qualifies it.

    Args:
        standings: What to show.
    """
    stream = io.StringIO()
    writer = csv.DictWriter(stream, CSV_HEADS, lineterminator="\n")
    writer.writeheader()
    for table, row, column, cell in _values(standings.tables):
        writer.writerow(_record(table, row, column, cell))
    return stream.getvalue()


def render_json(standings: Standings) -> str:
    """Return the values of `render_csv` as one JSON document, with the known contradictions in print.

    Args:
        standings: What to show.
    """
    cells = [_record(table, row, column, cell) for table, row, column, cell in _values(standings.tables)]
    document = {
        "paper": standings.reference.paper,
        "cells": [
            {head: value for head, value in record.items() if value != "" and value is not False} for record in cells
        ],
        "inconsistencies": [vars(entry) for entry in standings.reference.inconsistencies],
    }
    return json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _values(tables: Iterable[Table]) -> Iterator[tuple[Table, Row, Column, Cell]]:
    """Yield the cells that hold a value or were run without one."""
    for table in tables:
        for row in table.rows:
            for column, cell in zip(table.published.columns, row.cells, strict=True):
                if cell.value is not None or cell.unscored:
                    yield table, row, column, cell


def _record(table: Table, row: Row, column: Column, cell: Cell) -> dict[str, Any]:
    result = next((result for result in row.results if result.evaluator == column.evaluator), None)
    record = {
        "table": table.published.name,
        "world": table.world,
        "source": row.source,
        "backbone": row.backbone,
        "method": row.method or "",
        "data": row.data or "",
        "evaluator": column.evaluator,
        "metric": column.metric,
        "value": "unscored" if cell.unscored else cell.value,
        "low": cell.interval.low if cell.interval else "",
        "high": cell.interval.high if cell.interval else "",
        "estimator": cell.interval.estimator if cell.interval else "",
        "starred": row.starred or cell.starred,
        "doubted": cell.doubted,
        "contaminated": row.contaminated,
        "subset": row.subset,
    }
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
