"""Progress on a terminal."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from segros_eval.cli.console import err
from segros_eval.pipeline.progress import ProgressCallback

__all__ = ["RichListener", "duration"]


class RichListener:
    """Show phases as bars on a terminal, and as a line at their end elsewhere."""

    def __init__(self) -> None:
        self.console = err()

    @contextmanager
    def phase(self, title: str, total: int | None) -> Iterator[ProgressCallback]:
        """Follow one phase."""
        began = time.monotonic()
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("[dim]{task.fields[note]}[/dim]"),
        )
        with Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal) as progress:
            task = progress.add_task(title, total=total, note="")

            def tell(num_more: int, note: str = "") -> None:
                progress.advance(task, num_more)
                if note:
                    progress.update(task, note=note)

            yield tell
            note = progress.tasks[0].fields["note"]
        seconds = time.monotonic() - began
        self.console.print(Text.assemble(("✓ ", "green"), title, (f"  {duration(seconds)}  {note}".rstrip(), "dim")))

    def note(self, text: str) -> None:
        """Show something that happened once."""
        self.console.print(Text.assemble(("! ", "bold yellow"), text), soft_wrap=True)


def duration(seconds: float) -> str:
    """Write a time in the largest unit that suits."""
    if seconds < 90:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
