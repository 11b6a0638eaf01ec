"""Leaderboards: measured results beside published numbers.

Results are read from run folders and from `leaderboards/results`; the Markdown pages below
`leaderboards/` and the table in the README are rendered from the latter alone, so that a page can be
checked against the committed files.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

import pandas as pd

from segros_eval.benchmarks.base import Result
from segros_eval.pipeline.store import read_result, write_result
from segros_eval.reporting.html import render_page
from segros_eval.reporting.latex import render_latex
from segros_eval.reporting.layout import layout
from segros_eval.reporting.markdown import render_markdown, table_markdown
from segros_eval.reporting.published import Reference, load_reference
from segros_eval.reporting.rows import PUBLISHED_WORLD, FilledTable, filled_tables, value_frame
from segros_eval.reporting.table import Table
from segros_train.errors import PrerequisiteError
from segros_train.files import write_text

__all__ = [
    "Format",
    "check_rendered",
    "load_results",
    "publish_results",
    "render",
    "render_paper_table",
    "render_summary",
    "write_rendered",
]

Format = Literal["md", "html", "csv", "json", "latex"]

BEGIN = "<!-- leaderboard:begin -->"
END = "<!-- leaderboard:end -->"
RENDERED = "<!-- Rendered by `segros leaderboard`; change the results, not this file. -->"

_log = logging.getLogger(__name__)


def load_results(*folders: Path) -> list[Result]:
    """Read every result below folders: `result.json` of run folders and the files of a `results` folder.

    Of two results with one key the one with fewer unscored items stays, of equal ones the first.

    Args:
        folders: Folders to search; one that does not exist holds nothing.

    Raises:
        PrerequisiteError: If a file is no result.
    """
    found: dict[str, tuple[Result, Path]] = {}
    for folder in folders:
        for path in sorted(_result_files(folder)):
            result = read_result(path)
            known = found.setdefault(result.key, (result, path))
            if known[0].metrics != result.metrics:
                _log.warning("%s and %s have the same key and other numbers.", known[1], path)
                found[result.key] = min(known, (result, path), key=lambda entry: entry[0].num_unscored)
    return [result for result, _ in found.values()]


def render(results: Iterable[Result], reference: Reference, *, fmt: Format) -> str:
    """Return the whole leaderboard.

    Args:
        results: Measured cells.
        reference: Published numbers.
        fmt: Format of the text.

    Raises:
        ValueError: If the format is unknown.
    """
    filled = filled_tables(results, reference)
    match fmt:
        case "md":
            return render_markdown(layout(filled, reference))
        case "html":
            return _html(filled, reference)
        case "latex":
            return render_latex(table for table in layout(filled, reference) if not table.auxiliary)
        case "csv":
            return value_frame(filled).to_csv(index=False)
        case "json":
            return _json(filled, reference)
    raise ValueError(f"Unknown format {fmt!r}: {', '.join(get_args(Format))}.")


def _html(filled: Sequence[FilledTable], reference: Reference) -> str:
    measured = {(row.backbone, row.method) for table in filled for row in table.rows if row.source == "measured"}
    lead = (
        f"{len(measured)} measured models beside the numbers of “{reference.paper}”. "
        "Published rows are grey. Click a head to sort; point at a value for its interval."
    )
    return render_page("SeGroS leaderboard", lead=lead, parts=layout(filled, reference))


def _json(filled: Sequence[FilledTable], reference: Reference) -> str:
    """Return the values as one document, with the known contradictions in print; what says nothing is left out."""
    cells = [
        {name: value for name, value in record.items() if pd.notna(value) and value is not False}
        for record in value_frame(filled).astype(object).to_dict("records")
    ]
    inconsistencies = [vars(entry) for entry in reference.inconsistencies]
    document = {"paper": reference.paper, "cells": cells, "inconsistencies": inconsistencies}
    return json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def render_summary(
    results: Iterable[Result], reference: Reference, *, published: Sequence[str] = ("harmon-0.5b",)
) -> str:
    """Return the generation tables for a README: what was measured, and the paper's rows of a few backbones.

    Args:
        results: Measured cells.
        reference: Published numbers.
        published: Backbones whose printed rows are shown.
    """
    tables = _one_table(results, reference, table="generation", published=published)
    return "\n\n".join(table_markdown(table, level=3) for table in tables if not table.auxiliary) + "\n"


def render_paper_table(
    results: Iterable[Result], reference: Reference, *, table: str, backbones: Sequence[str] = ()
) -> str:
    """Return one table of the paper as Markdown, ours beside the published rows, one section per world.

    Args:
        results: Measured cells.
        reference: Published numbers.
        table: Name of the table in the reference.
        backbones: Backbones to show; none for all. A tiny backbone brings the printed rows of its family.

    Raises:
        PrerequisiteError: If there is no such table.
    """
    families = tuple(name.removesuffix("-tiny") for name in backbones)
    printed = {row.backbone for row in reference.table(table).rows if row.backbone.startswith(families)}
    tables = _one_table(results, reference, table=table, published=tuple(printed), measured=backbones)
    return render_markdown(one for one in tables if not one.auxiliary or one.name.endswith("-agreement"))


def publish_results(results: Iterable[Result], folder: Path) -> list[Path]:
    """Write results as files of a `results` folder and return their paths.

    Args:
        results: Measured cells.
        folder: The `results` folder.
    """
    paths = []
    for result in results:
        path = folder / f"{result.backbone}-{result.method}-{result.evaluator}-{result.key[:8]}.json"
        write_result(path, result)
        paths.append(path)
    return paths


def write_rendered(folder: Path) -> list[Path]:
    """Render the Markdown pages of a `leaderboards` folder and the table in the README beside it.

    Args:
        folder: The `leaderboards` folder, with `reference` and `results`.

    Returns:
        The files that changed.
    """
    stale = _stale(folder)
    for path, text in stale.items():
        write_text(path, text)
    return list(stale)


def check_rendered(folder: Path) -> list[Path]:
    """Return the rendered files that do not show the committed results.

    Args:
        folder: The `leaderboards` folder, with `reference` and `results`.
    """
    return list(_stale(folder))


def _result_files(folder: Path) -> Iterable[Path]:
    published = folder.glob("*.json" if folder.name == "results" else "results/*.json")
    return {*folder.glob("**/evals/*/result.json"), *folder.glob("result.json"), *published}


def _one_table(
    results: Iterable[Result],
    reference: Reference,
    *,
    table: str,
    published: Sequence[str] = (),
    measured: Sequence[str] = (),
) -> tuple[Table, ...]:
    """Lay out one table, with the rows of some backbones; none named stands for all."""
    names = {"published": published, "measured": measured}
    chosen = [
        replace(one, rows=tuple(row for row in one.rows if not names[row.source] or row.backbone in names[row.source]))
        for one in filled_tables(results, reference)
        if one.structure.name == table
    ]
    # The embedded world first: it is what a reader of a README can remake at once.
    chosen.sort(key=lambda one: one.world == PUBLISHED_WORLD)
    return layout([one for one in chosen if one.rows], reference)


def _stale(folder: Path) -> dict[Path, str]:
    """Return the files whose text is not what the committed results render to, with the right text."""
    reference = load_reference(folder / "reference" / "segros.json")
    results = load_results(folder / "results")
    tables = layout(filled_tables(results, reference), reference)
    wanted = {}
    for page in dict.fromkeys((*(table.page for table in reference.tables), *(table.page for table in tables))):
        body = render_markdown(table for table in tables if table.page == page)
        wanted[folder / f"{page}.md"] = f"{RENDERED}\n\n# {page.capitalize()}\n\n{body}"
    readme = folder.parent / "README.md"
    if readme.exists() and BEGIN in (text := readme.read_text(encoding="utf-8")):
        wanted[readme] = _embedded(text, render_summary(results, reference), readme)
    return {path: text for path, text in wanted.items() if not path.exists() or path.read_text("utf-8") != text}


def _embedded(text: str, table: str, path: Path) -> str:
    before, _, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise PrerequisiteError(f"{path} has {BEGIN} without {END} after it. Put the closing mark back.")
    return f"{before}{BEGIN}\n\n{table}\n{END}{after}"
