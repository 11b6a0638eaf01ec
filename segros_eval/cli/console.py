"""What every command shares: the two streams and the exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from segros_train.errors import PrerequisiteError

if TYPE_CHECKING:
    from segros_eval.pipeline.catalog import Catalog

__all__ = [
    "FAILED",
    "UNUSABLE",
    "Tasks",
    "declared",
    "emit",
    "err",
    "names",
    "out",
    "refuse",
    "seeds_of",
    "write_document",
]

FAILED = 1
UNUSABLE = 2
Tasks = Annotated[
    list[Path] | None,
    typer.Option("--tasks", help="A folder of declarations of your own, added to what there is; repeatable."),
]


def declared(tasks: list[Path] | None = None) -> Catalog:
    """Return what the project, installed packages and the folders given with `--tasks` declare.

    Raises:
        PrerequisiteError: If a declaration cannot be read.
    """
    from segros_eval.pipeline.catalog import added_tasks, find_tasks, load_catalog

    return load_catalog(find_tasks(), *added_tasks(), *(tasks or ()))


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
    for problem in error.problems:
        err().print(Text.assemble(("Error: ", "bold red"), str(problem)), soft_wrap=True)


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
