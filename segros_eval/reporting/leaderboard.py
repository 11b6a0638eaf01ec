"""Leaderboards: measured results beside published numbers, in the published tables' structure.

Results are read from run folders and from `leaderboards/results`; the Markdown pages below
`leaderboards/` and the table in the README are rendered from the latter alone, so that a page can be
checked against the committed files.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from segros_eval.benchmarks.base import Result
from segros_eval.pipeline.store import read_result, write_result
from segros_eval.reporting.formats import render_csv, render_html, render_json, render_markdown, sheet_markdown
from segros_eval.reporting.measured import PUBLISHED_WORLD, build_standings
from segros_eval.reporting.published import Reference, load_reference
from segros_eval.reporting.table import Sheet, sheets_of
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

Format = Literal["md", "html", "csv", "json"]

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
    standings = build_standings(results, reference)
    if fmt == "md":
        return render_markdown(standings)
    if fmt == "html":
        return render_html(standings)
    if fmt == "csv":
        return render_csv(standings)
    if fmt == "json":
        return render_json(standings)
    raise ValueError(f"Unknown format {fmt!r}: md, html, csv or json.")


def render_summary(
    results: Iterable[Result], reference: Reference, *, published: Sequence[str] = ("harmon-0.5b",)
) -> str:
    """Return the generation tables for a README: what was measured, and the paper's rows of a few backbones.

    Args:
        results: Measured cells.
        reference: Published numbers.
        published: Backbones whose printed rows are shown.
    """
    sheets = _sheets(results, reference, table="generation", published=published)
    return "\n\n".join(sheet_markdown(sheet, level=3) for sheet in sheets if not sheet.auxiliary) + "\n"


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
    sheets = _sheets(results, reference, table=table, published=tuple(printed), measured=backbones)
    shown = [sheet for sheet in sheets if not sheet.auxiliary or sheet.name.endswith("-agreement")]
    return "\n\n".join(map(sheet_markdown, shown)) + "\n"


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


def _sheets(
    results: Iterable[Result],
    reference: Reference,
    *,
    table: str,
    published: Sequence[str] = (),
    measured: Sequence[str] = (),
) -> tuple[Sheet, ...]:
    """Return the sheets of one table, with the rows of some backbones; none named stands for all."""
    names = {"published": published, "measured": measured}
    standings = build_standings(results, reference)
    chosen = [
        replace(one, rows=tuple(row for row in one.rows if not names[row.source] or row.backbone in names[row.source]))
        for one in standings.tables
        if one.published.name == table
    ]
    # The embedded world first: it is what a reader of a README can remake at once.
    chosen.sort(key=lambda one: one.world == PUBLISHED_WORLD)
    agreements = tuple(one for one in standings.agreements if not measured or one.row.backbone in measured)
    return sheets_of(replace(standings, tables=tuple(one for one in chosen if one.rows), agreements=agreements))


def _stale(folder: Path) -> dict[Path, str]:
    """Return the files whose text is not what the committed results render to, with the right text."""
    reference = load_reference(folder / "reference" / "segros.json")
    standings = build_standings(load_results(folder / "results"), reference)
    wanted = {}
    for page in dict.fromkeys(table.page for table in reference.tables):
        body = render_markdown(standings, page=page)
        wanted[folder / f"{page}.md"] = f"{RENDERED}\n\n# {page.capitalize()}\n\n{body}"
    readme = folder.parent / "README.md"
    if readme.exists() and BEGIN in (text := readme.read_text(encoding="utf-8")):
        wanted[readme] = _embedded(text, render_summary(standings.results, reference), readme)
    return {path: text for path, text in wanted.items() if not path.exists() or path.read_text("utf-8") != text}


def _embedded(text: str, table: str, path: Path) -> str:
    before, _, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise PrerequisiteError(f"{path} has {BEGIN} without {END} after it. Put the closing mark back.")
    return f"{before}{BEGIN}\n\n{table}\n{END}{after}"
