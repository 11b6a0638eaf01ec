"""Tables as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from segros_eval.reporting.table import MISSING, Cell, Head, Table

__all__ = ["render_markdown", "table_markdown"]


def render_markdown(tables: Iterable[Table]) -> str:
    """Return tables as a Markdown text."""
    return "\n\n".join(map(table_markdown, tables)) + "\n"


def table_markdown(table: Table, *, level: int = 2) -> str:
    """Return a table as a section: published rows in italics, measured headlines in bold.

    Args:
        table: What to show.
        level: Level of its headline.
    """
    source = f" ({table.source})" if table.source else ""
    heads = [_head(head, table.heads[:place]) for place, head in enumerate(table.heads)]
    rules = ["---:" if head.numeric else "---" for head in table.heads]
    lines = [_line(heads), _line(rules), *(_line(_texts(kind, cells)) for kind, cells in table.rows)]
    parts = [f"{'#' * level} {table.title}{source}", "\n".join(lines)]
    if table.notes:
        parts.append("\n".join(f"- {note}" for note in table.notes))
    return "\n\n".join(parts)


def _head(head: Head, before: Sequence[Head]) -> str:
    """Name the group in the head of its first column, for Markdown has no spanning heads."""
    first = head.group and (not before or before[-1].group != head.group)
    return f"{head.group}: {head.text}" if first else head.text


def _texts(kind: str, cells: Sequence[Cell]) -> Iterator[str]:
    for cell in cells:
        text = cell.text.replace("|", "\\|").replace("*", "\\*")
        if kind == "published" and cell.text != MISSING:
            yield f"_{text}_"
        else:
            yield f"**{text}** {cell.detail}" if cell.detail else text


def _line(texts: Iterable[str]) -> str:
    return f"| {' | '.join(texts)} |"
