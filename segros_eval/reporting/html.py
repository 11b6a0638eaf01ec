"""Self-contained HTML pages: one template that escapes whatever it is given, light and dark, nothing fetched."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from segros_eval.reporting.table import Head, Table

__all__ = ["Curve", "Facts", "Tiles", "render_page"]


@dataclass(frozen=True)
class Facts:
    """Named texts, as a list of two columns."""

    name: str
    title: str
    facts: Mapping[str, str]


@dataclass(frozen=True)
class Tiles:
    """A grid of pictures: the data URI and the caption of each."""

    name: str
    title: str
    tiles: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Curve:
    """A line chart: the values pale, their running mean in full colour.

    Attributes:
        name: Its anchor.
        title: Headline.
        xs: Positions, ascending, at least two.
        ys: Finite values, as many.
        x_title: Name of the horizontal axis.
        y_title: Name of the vertical axis.
    """

    name: str
    title: str
    xs: Sequence[float]
    ys: Sequence[float]
    x_title: str
    y_title: str

    @property
    def smoothed(self) -> list[float]:
        """The mean of each value and its neighbours, over a twentieth of the run."""
        reach = len(self.ys) // 40
        windows = (self.ys[max(0, i - reach) : i + reach + 1] for i in range(len(self.ys)))
        return [sum(window) / len(window) for window in windows]

    def points(self, values: Sequence[float]) -> str:
        """Return where values lie in the drawing, which is 760 wide and 240 high."""
        across, up = self.xs[-1] - self.xs[0], max(self.ys) - min(self.ys)
        return " ".join(
            f"{56 + 696 * (x - self.xs[0]) / (across or 1):.1f},{8 + 198 * (max(self.ys) - y) / (up or 1):.1f}"
            for x, y in zip(self.xs, values, strict=True)
        )


def render_page(title: str, *, lead: str, parts: Iterable[Table | Facts | Tiles | Curve]) -> str:
    """Return a page.

    Args:
        title: Headline.
        lead: One or two sentences below it.
        parts: What it holds; all but auxiliary tables are in its list of contents.
    """
    environment = Environment(
        autoescape=True, loader=FileSystemLoader(Path(__file__).parent / "assets"), undefined=StrictUndefined
    )
    environment.filters |= {"with_code": _with_code, "groupwise": _groupwise}
    whole = list(parts)
    named = [part for part in whole if not getattr(part, "auxiliary", False)]
    return environment.get_template("page.html.j2").render(title=title, lead=lead, parts=whole, named=named) + "\n"


def _with_code(note: str) -> Markup:
    return Markup(re.sub(r"`([^`]*)`", r"<code>\1</code>", str(escape(note))))


def _groupwise(heads: Sequence[Head]) -> list[tuple[str, int]]:
    return [(group, len(list(members))) for group, members in groupby(head.group for head in heads)]
