"""A table as every format renders it: a data frame of cells, with a title and the notes that explain it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import pandas as pd

from segros_eval.benchmarks.base import Interval

__all__ = ["MISSING", "UNSCORED", "Cell", "Head", "Table", "interval_text", "make_table", "number", "signed"]

MISSING = "–"


class Head(NamedTuple):
    """The head of a column: the one that spans it and its neighbours, its own, and whether it holds numbers."""

    group: str
    text: str
    numeric: bool = False


class Cell(NamedTuple):
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

    def __str__(self) -> str:
        return f"{self.text} {self.detail}" if self.detail else self.text


UNSCORED = Cell("unscored", tone="bad")
"""Stands for what was run and could not be scored."""


@dataclass(frozen=True)
class Table:
    """A table of texts.

    Attributes:
        name: Its anchor.
        title: Headline.
        frame: A `Cell` in every place; columns have three levels, those of `Head`.
        kinds: Of each row: `"published"`, `"measured"` or `"plain"`.
        source: Where it was printed.
        notes: What a reader should know; code stands between backticks.
        page: Page of the leaderboard that shows it.
        auxiliary: Whether it explains other tables of its page.
    """

    name: str
    title: str
    frame: pd.DataFrame
    kinds: tuple[str, ...]
    source: str = ""
    notes: tuple[str, ...] = ()
    page: str = ""
    auxiliary: bool = False

    @property
    def heads(self) -> list[Head]:
        """Heads of the columns."""
        return [Head(*column) for column in self.frame.columns]

    @property
    def rows(self) -> list[tuple[str, tuple[Cell, ...]]]:
        """Kind and cells of each row."""
        return list(zip(self.kinds, self.frame.itertuples(index=False, name=None), strict=True))


def make_table(
    name: str,
    title: str,
    heads: Sequence[str | Head],
    rows: Iterable[Sequence[str | Cell]],
    *,
    numeric: Sequence[str] = (),
    kinds: Sequence[str] | None = None,
    source: str = "",
    notes: Iterable[str] = (),
    page: str = "",
    auxiliary: bool = False,
) -> Table:
    """Return a table of texts or cells.

    Args:
        name: See `Table`.
        title: See `Table`.
        heads: Heads, or their texts.
        rows: Cells, or their texts.
        numeric: Texts of heads whose columns hold numbers.
        kinds: See `Table`; None for plain rows.
        source: See `Table`.
        notes: See `Table`.
        page: See `Table`.
        auxiliary: See `Table`.
    """
    whole = [head if isinstance(head, Head) else Head("", head, head in numeric) for head in heads]
    cells = [[cell if isinstance(cell, Cell) else Cell(cell) for cell in row] for row in rows]
    columns = {place: pd.Series([row[place] for row in cells], dtype=object) for place in range(len(whole))}
    frame = pd.DataFrame(columns, dtype=object)
    frame.columns = pd.MultiIndex.from_tuples(whole, names=Head._fields)
    kept = tuple(kinds) if kinds is not None else ("plain",) * len(cells)
    return Table(name, title, frame, kept, source, tuple(notes), page, auxiliary)


def number(value: float | str | None, *, printed: bool = False) -> str:
    """Return a value as shown: a print's as printed, a measured one with one decimal."""
    if value is None:
        return MISSING
    if isinstance(value, str) or printed:
        return str(value)
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.1f}"


def signed(text: str) -> str:
    """Return a number's text with a true minus sign."""
    return text.replace("-", "−")


def interval_text(interval: Interval) -> str:
    """Return `[low, high]`."""
    return signed(f"[{number(interval.low)}, {number(interval.high)}]")
