"""Published numbers: the tables of a paper as it printed them, and the cells that remake them.

A reference file is a transcription. What its source gets wrong is recorded beside it
(`inconsistencies`), what other sources print for the same cell is recorded too (`elsewhere`), and
nothing is corrected. A label that our copy of the print lost is None, or filled and marked with why
(`inferred`). This module imports no torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from segros_train.errors import PrerequisiteError, unknown_name

__all__ = [
    "Column",
    "Elsewhere",
    "Inconsistency",
    "Label",
    "Published",
    "PublishedRow",
    "PublishedTable",
    "Reference",
    "default_reference",
    "load_reference",
]


@dataclass(frozen=True)
class Label:
    """A text of a table's head or side.

    Attributes:
        text: After the print, shortened where that is long; None where our copy of the print lost it.
        inferred: Why the text is believed, where it was not printed.
    """

    text: str | None
    inferred: str = ""


@dataclass(frozen=True)
class Column:
    """A column of values.

    Attributes:
        key: `"<evaluator>/<metric>"`, or `"recipe/<setting>"` in tables that hold settings.
        title: After the print.
        group: Head that spans several columns.
        inferred: Why the title is believed, where it was not printed.
    """

    key: str
    title: str
    group: str = ""
    inferred: str = ""

    @property
    def evaluator(self) -> str:
        """Name of the evaluation task."""
        return self.key.partition("/")[0]

    @property
    def metric(self) -> str:
        """Name of the metric among the evaluator's."""
        return self.key.partition("/")[2]


@dataclass(frozen=True)
class Published:
    """A printed value; None is a dash in print, a text is a setting."""

    value: float | str | None
    starred: bool = False


@dataclass(frozen=True)
class PublishedRow:
    """A printed row.

    Attributes:
        backbone: Name of the card.
        method: Name of the train task; None where the print does not tell which it was.
        data: Name of the training data.
        labels: One per label column of the table.
        cells: Values by column key.
        starred: Whether the paper stars the row as a whole.
    """

    backbone: str
    method: str | None
    data: str | None
    labels: tuple[Label, ...]
    cells: Mapping[str, Published]
    starred: bool = False


@dataclass(frozen=True)
class PublishedTable:
    """A printed table.

    Attributes:
        name: What it is about; stable, unlike the paper's numbering.
        title: Headline.
        page: Page of the rendered leaderboard that shows it.
        source: Where the paper prints it.
        labels: Heads of the label columns.
        columns: Columns of values.
        rows: Printed rows, in order.
        methods: Order of methods in a table that takes any measured method; empty for a table that takes only
            the methods it prints and `also`.
        also: Labels of methods that a closed table takes and does not print.
        note: What a reader should know.
    """

    name: str
    title: str
    page: str
    source: str
    labels: tuple[Label, ...]
    columns: tuple[Column, ...]
    rows: tuple[PublishedRow, ...]
    methods: tuple[str, ...] = ()
    also: Mapping[str, tuple[Label, ...]] = field(default_factory=dict)
    note: str = ""

    @property
    def takes(self) -> tuple[str, ...]:
        """Names of the methods it prints, orders or takes besides, in order of their rows."""
        printed = (row.method for row in self.rows if row.method is not None)
        return tuple(dict.fromkeys((*self.methods, *printed, *self.also)))

    @property
    def holds_settings(self) -> bool:
        """Whether the table prints settings, which nothing measures."""
        return all(column.evaluator == "recipe" for column in self.columns)

    def row(self, backbone: str, method: str) -> PublishedRow | None:
        """Return the printed row of a backbone and method, or None."""
        return next((row for row in self.rows if (row.backbone, row.method) == (backbone, method)), None)


@dataclass(frozen=True)
class Inconsistency:
    """A printed value that the same paper's other values contradict."""

    table: str
    backbone: str
    method: str
    key: str
    printed: float
    recomputed: float
    basis: str


@dataclass(frozen=True)
class Elsewhere:
    """What another source prints for a cell; `first_hand` is False for figures quoted by a third party."""

    backbone: str
    method: str
    key: str
    value: float
    source: str
    first_hand: bool


@dataclass(frozen=True)
class Reference:
    """Everything published that measured numbers stand beside.

    Attributes:
        paper: Title of the source.
        star: What a star means.
        tables: Its tables.
        inconsistencies: Where it contradicts itself.
        elsewhere: Where other sources differ.
        contaminated: Training data by name to the evaluators it leaks into.
        contamination_notes: Training data by name to one sentence about the leak.
    """

    paper: str
    star: str
    tables: tuple[PublishedTable, ...]
    inconsistencies: tuple[Inconsistency, ...] = ()
    elsewhere: tuple[Elsewhere, ...] = ()
    contaminated: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    contamination_notes: Mapping[str, str] = field(default_factory=dict)

    def table(self, name: str) -> PublishedTable:
        """Return a table by name.

        Raises:
            PrerequisiteError: If there is none, with the nearest name.
        """
        for table in self.tables:
            if table.name == name:
                return table
        raise unknown_name("published table", name, [table.name for table in self.tables])

    def leaks(self, data: str | None, method: str | None, evaluator: str) -> bool:
        """Tell whether a method was trained on data that holds an evaluator's own prompts."""
        return method != "none" and evaluator in self.contaminated.get(data or "", ())


def default_reference() -> Path:
    """Return the reference file shipped with the package, or the repository's."""
    shipped = Path(__file__).parent.parent / "_reference" / "segros.json"
    return (
        shipped
        if shipped.exists()
        else Path(__file__).parent.parent.parent / "leaderboards" / "reference" / "segros.json"
    )


def load_reference(path: Path | None = None) -> Reference:
    """Read published numbers.

    Args:
        path: Reference file; None for the project's own.

    Raises:
        PrerequisiteError: If the file is missing or no reference file.
    """
    source = path or default_reference()
    try:
        return _reference(json.loads(source.read_text(encoding="utf-8")))
    except OSError as error:
        raise PrerequisiteError(f"Cannot read the published numbers in {source}: {error.strerror}.") from error
    except (KeyError, TypeError, ValueError) as error:
        raise PrerequisiteError(
            f"{source} is no reference file ({type(error).__name__}: {error}). Restore it from the repository."
        ) from error


def _reference(document: Mapping[str, Any]) -> Reference:
    leaks = document["contaminated"]
    return Reference(
        paper=document["paper"],
        star=document["star"],
        tables=tuple(_table(table) for table in document["tables"]),
        inconsistencies=tuple(Inconsistency(**entry) for entry in document["inconsistencies"]),
        elsewhere=tuple(Elsewhere(**entry) for entry in document["elsewhere"]),
        contaminated={data: tuple(leak["evaluators"]) for data, leak in leaks.items()},
        contamination_notes={data: leak["note"] for data, leak in leaks.items()},
    )


def _table(document: Mapping[str, Any]) -> PublishedTable:
    columns = tuple(Column(**column) for column in document["columns"])
    return PublishedTable(
        name=document["name"],
        title=document["title"],
        page=document["page"],
        source=document["source"],
        labels=tuple(_label(label) for label in document["labels"]),
        columns=columns,
        rows=tuple(_row(row, columns) for row in document["rows"]),
        methods=tuple(document.get("methods", ())),
        also={method: tuple(map(_label, labels)) for method, labels in document.get("also", {}).items()},
        note=document.get("note", ""),
    )


def _row(document: Mapping[str, Any], columns: tuple[Column, ...]) -> PublishedRow:
    cells = zip(columns, document["cells"], strict=True)
    return PublishedRow(
        backbone=document["backbone"],
        method=document["method"],
        data=document["data"],
        labels=tuple(_label(label) for label in document["labels"]),
        cells={column.key: _published(cell) for column, cell in cells},
        starred=document.get("starred", False),
    )


def _label(value: Any) -> Label:
    return Label(**value) if isinstance(value, Mapping) else Label(value)


def _published(value: Any) -> Published:
    return Published(**value) if isinstance(value, Mapping) else Published(value)
