"""Tables as LaTeX, for `booktabs`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import groupby

from segros_eval.reporting.table import Cell, Table

__all__ = ["render_latex"]

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "–": "--",
    "−": "$-$",
    "°": r"\textdegree{}",
    "†": r"\textdagger{}",
    "‡": r"\textdaggerdbl{}",
    "≠": r"$\neq$",
    **{mark: f"\\{mark}" for mark in "&%$#_{}"},
}


def render_latex(tables: Iterable[Table]) -> str:
    """Return tables as a text to include: published rows in italics, measured headlines in bold."""
    return "% Needs \\usepackage{booktabs}.\n" + "\n".join(map(_table, tables))


def _table(table: Table) -> str:
    heads = table.heads
    columns = "".join("r" if head.numeric else "l" for head in heads)
    spans = [(group, len(list(members))) for group, members in groupby(head.group for head in heads)]
    above = [_line(rf"\multicolumn{{{width}}}{{c}}{{{_escaped(group)}}}" for group, width in spans)]
    source = f" ({table.source})" if table.source else ""
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_escaped(table.title + source)}}}",
        rf"\label{{tab:{re.sub('[^a-z0-9-]', '-', table.name)}}}",
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        *(above if any(group for group, _ in spans) else []),
        _line(_escaped(head.text) for head in heads),
        r"\midrule",
        *(_line(_texts(kind, cells)) for kind, cells in table.rows),
        r"\bottomrule",
        r"\end{tabular}",
        *(rf"\par {_escaped(note.replace('`', ''))}" for note in table.notes),
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _line(texts: Iterable[str]) -> str:
    return " & ".join(texts) + r" \\"


def _texts(kind: str, cells: Iterable[Cell]) -> Iterator[str]:
    for cell in cells:
        text = _escaped(cell.text)
        if kind == "published":
            yield rf"\textit{{{text}}}"
        else:
            yield rf"\textbf{{{text}}} {_escaped(cell.detail)}" if cell.detail else text


def _escaped(text: str) -> str:
    return "".join(_SPECIAL.get(mark, mark) for mark in text)
