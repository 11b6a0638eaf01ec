"""The cells that remake a printed table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["PaperTable"]


@dataclass(frozen=True)
class PaperTable:
    """The cells that remake a printed table; a value of `tasks/paper`.

    Attributes:
        name: Name on the command line, e.g. `"table-1"`.
        table: Name of the printed table in the reference.
        backbones: Names of the cards, in the order of print.
        train: Names of the train tasks, in the order of print.
        evals: Names of the evaluation tasks.
        data: Names of the training data, by backbone.
        note: What differs from a plain rerun.
    """

    name: str
    table: str
    backbones: tuple[str, ...]
    train: tuple[str, ...]
    evals: tuple[str, ...]
    data: Mapping[str, str] = field(default_factory=dict)
    note: str = ""
