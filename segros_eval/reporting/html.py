"""Self-contained HTML pages: one style, light and dark, no library, nothing fetched."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from itertools import groupby
from pathlib import Path

from segros_eval.reporting.table import Head, Sheet, SheetCell, SheetRow

__all__ = ["curve", "document", "facts", "section", "tiles", "titled"]

ASSETS = Path(__file__).parent / "assets"
WRAP_FROM = 48


def document(title: str, *, lead: str, sections: Iterable[tuple[str, str, str]]) -> str:
    """Return a page.

    Args:
        title: Headline.
        lead: One or two sentences below it.
        sections: (anchor, name in the list of contents or an empty text, HTML) of each part.
    """
    parts = list(sections)
    links = "".join(f'<a href="#{escape(anchor)}">{escape(name)}</a>' for anchor, name, _ in parts if name)
    contents = f"<nav>{links}</nav>\n" if links else ""
    style = (ASSETS / "page.css").read_text(encoding="utf-8")
    script = (ASSETS / "sort.js").read_text(encoding="utf-8")
    body = "\n".join(html for _, _, html in parts)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{escape(title)}</title>\n'
        f"<style>\n{style}</style>\n</head>\n<body>\n<h1>{escape(title)}</h1>\n"
        f'<p class="lead">{escape(lead)}</p>\n{contents}{body}\n<script>\n{script}</script>\n'
        "</body>\n</html>\n"
    )


def section(sheet: Sheet) -> tuple[str, str, str]:
    """Return a sheet as a part of a page: anchor, name in the contents, HTML with a sortable table."""
    body = f'<div class="scroll"><table>\n{_heads(sheet.heads)}\n<tbody>\n'
    body += "\n".join(_row(row, sheet.heads) for row in sheet.rows)
    body += f"\n</tbody></table></div>{_notes(sheet.notes)}"
    anchor, name, html = titled(sheet.name, sheet.title, body, source=sheet.source)
    return anchor, "" if sheet.auxiliary else name, html


def titled(anchor: str, title: str, body: str, *, source: str = "") -> tuple[str, str, str]:
    """Return a part of a page with a headline: anchor, name in the contents, HTML."""
    aside = f'<span class="source">{escape(source)}</span>' if source else ""
    return anchor, title, f'<section id="{escape(anchor)}">\n<h2>{escape(title)}{aside}</h2>\n{body}\n</section>'


def facts(values: Mapping[str, str]) -> str:
    """Return named texts as a list of two columns."""
    return f'<dl class="facts">{"".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in values.items())}</dl>'


def tiles(images: Sequence[tuple[str, str]]) -> str:
    """Return a grid of pictures.

    Args:
        images: (data URI, caption) of each.
    """
    figures = (
        f'<figure><img src="{uri}" alt="{escape(caption)}" loading="lazy"><figcaption>{escape(caption)}</figcaption>'
        "</figure>"
        for uri, caption in images
    )
    return f'<div class="tiles">{"".join(figures)}</div>'


def curve(xs: Sequence[float], ys: Sequence[float], *, x_title: str, y_title: str) -> str:
    """Return a line chart as inline SVG: the values pale, their running mean in full colour.

    Args:
        xs: Positions, ascending, at least two.
        ys: Finite values, as many.
        x_title: Name of the horizontal axis.
        y_title: Name of the vertical axis.
    """
    width, height, left, bottom = 760, 240, 56, 34
    low, high = min(ys), max(ys)
    span_x, span_y = (xs[-1] - xs[0]) or 1.0, (high - low) or 1.0

    def path(values: Sequence[float]) -> str:
        points = (
            f"{left + (width - left - 8) * (x - xs[0]) / span_x:.1f},"
            f"{8 + (height - bottom - 8) * (high - y) / span_y:.1f}"
            for x, y in zip(xs, values, strict=True)
        )
        return " ".join(points)

    floor = height - bottom
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(y_title)} over {escape(x_title)}">'
        f'<path class="axis" d="M{left} 8V{floor}H{width - 8}" fill="none"/>'
        f'<text x="{left - 6}" y="16" text-anchor="end">{high:.4g}</text>'
        f'<text x="{left - 6}" y="{floor}" text-anchor="end">{low:.4g}</text>'
        f'<text x="{left}" y="{height - 14}">{xs[0]:g}</text>'
        f'<text x="{width - 8}" y="{height - 14}" text-anchor="end">{xs[-1]:g}</text>'
        f'<text x="{(left + width) / 2}" y="{height - 4}" text-anchor="middle">{escape(x_title)}</text>'
        f'<text x="{left + 8}" y="18">{escape(y_title)}</text>'
        f'<polyline class="raw" points="{path(ys)}"/><polyline class="curve" points="{path(_smoothed(ys))}"/></svg>'
    )


def _smoothed(ys: Sequence[float]) -> list[float]:
    """Return the mean of each value and its neighbours, over a twentieth of the run."""
    reach = len(ys) // 40
    windows = (ys[max(0, i - reach) : i + reach + 1] for i in range(len(ys)))
    return [sum(window) / len(window) for window in windows]


def _heads(heads: Sequence[Head]) -> str:
    names = "".join(
        f'<th data-sort="{i}"{_class(head.numeric and "number")}>{escape(head.text)}</th>'
        for i, head in enumerate(heads)
    )
    if not any(head.group for head in heads):
        return f"<thead><tr>{names}</tr></thead>"
    spans = [(group, len(list(members))) for group, members in groupby(heads, key=lambda head: head.group)]
    groups = "".join(f'<th colspan="{n}"{_class(group and "span")}>{escape(group)}</th>' for group, n in spans)
    return f'<thead><tr class="groups">{groups}</tr><tr>{names}</tr></thead>'


def _row(row: SheetRow, heads: Sequence[Head]) -> str:
    cells = "".join(_cell(cell, head) for cell, head in zip(row.cells, heads, strict=True))
    return f"<tr{_class(row.kind)}>{cells}</tr>"


def _cell(cell: SheetCell, head: Head) -> str:
    wrap = "wrap" if len(cell.text) > WRAP_FROM else ""
    names = " ".join(name for name in ("number" if head.numeric else "", cell.tone, wrap) if name)
    value = f' data-value="{cell.sort}"' if cell.sort is not None else ""
    hint = f' title="{escape(cell.hint)}"' if cell.hint else ""
    detail = f'<span class="detail">{escape(cell.detail)}</span>' if cell.detail else ""
    return f"<td{_class(names)}{value}{hint}>{escape(cell.text)}{detail}</td>"


def _class(names: str | bool) -> str:
    return f' class="{names}"' if names else ""


def _notes(notes: Sequence[str]) -> str:
    if not notes:
        return ""
    texts = (re.sub(r"`([^`]*)`", r"<code>\1</code>", escape(note)) for note in notes)
    items = "".join(f"<li>{text}</li>" for text in texts)
    return f'<ul class="notes">{items}</ul>'
