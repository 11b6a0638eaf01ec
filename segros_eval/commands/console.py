"""What every command shares: the two streams, progress, and the exit codes."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from segros_eval.progress import Tell
from segros_train.errors import PrerequisiteError

__all__ = ["FAILED", "UNUSABLE", "RichListener", "emit", "err", "names", "out", "refuse", "seeds_of", "write_document"]

FAILED = 1
UNUSABLE = 2


def out() -> Console:
    """Return the console of standard output, where a command's result goes."""
    return Console(highlight=False, soft_wrap=False)


def err() -> Console:
    """Return the console of standard error, where progress and messages go."""
    return Console(stderr=True, highlight=False)


def emit(text: str) -> None:
    """Write text to standard output as it is, whatever the width of the terminal."""
    typer.echo(text, nl=not text.endswith("\n"))


def write_document(document: Any) -> None:
    """Write one JSON document to standard output."""
    emit(json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False))


def refuse(error: PrerequisiteError) -> None:
    """Show what is missing, one line per problem, without a traceback."""
    console = err()
    for line in str(error).splitlines():
        console.print(Text.assemble(("Error: ", "bold red"), line), soft_wrap=True)


def names(text: str | None) -> tuple[str, ...]:
    """Split a list separated by commas."""
    return tuple(part.strip() for part in (text or "").split(",") if part.strip())


def seeds_of(text: str) -> tuple[int, ...]:
    """Read seeds separated by commas.

    Raises:
        PrerequisiteError: If one is no whole number of at least 0.
    """
    parts = names(text)
    if not parts or not all(part.isdecimal() for part in parts):
        raise PrerequisiteError(f"--seed takes whole numbers of at least 0 separated by commas, found {text!r}.")
    return tuple(dict.fromkeys(int(part) for part in parts))


class RichListener:
    """Show phases as bars on a terminal, and as a line at their end elsewhere."""

    def __init__(self) -> None:
        self.console = err()

    @contextmanager
    def phase(self, title: str, total: int) -> Iterator[Tell]:
        """Follow one phase."""
        began = time.monotonic()
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("[dim]{task.fields[note]}[/dim]"),
        )
        with Progress(*columns, console=self.console, transient=True) as progress:
            task = progress.add_task(title, total=total, note="")

            def tell(num_more: int, note: str = "") -> None:
                progress.advance(task, num_more)
                if note:
                    progress.update(task, note=note)

            yield tell
            note = progress.tasks[0].fields["note"]
        seconds = time.monotonic() - began
        self.console.print(Text.assemble(("✓ ", "green"), title, (f"  {duration(seconds)}  {note}", "dim")))

    def note(self, text: str) -> None:
        """Show something that happened once."""
        self.console.print(Text.assemble(("! ", "bold yellow"), text), soft_wrap=True)


def duration(seconds: float) -> str:
    """Write a time in the largest unit that suits."""
    if seconds < 90:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
