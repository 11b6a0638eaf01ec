"""The `segros` command.

Exit codes: 0 every cell is scored; 1 a cell failed, memory ran out, or more items are unscored than allowed; 2 usage or
something missing. `--json` prints one JSON document on standard output; progress and messages go to standard error.
"""

from __future__ import annotations

import logging
import os
import signal
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from segros_eval.cli import data, info, judge, results
from segros_eval.cli import run as running
from segros_eval.cli.console import FAILED, UNUSABLE, emit, err, refuse
from segros_train.errors import MemoryShortageError, PrerequisiteError, memory_shortage_named

__all__ = ["app", "main"]

INTERRUPTED = 130
PASSIVE_THREADS = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "500", "KMP_BLOCKTIME": "0"}
"""Let idle OpenMP threads sleep: spinning ones take the processor from the threads that they wait for. A short spin
before (500 rounds, microseconds) spares most of the cost of waking them; `benchmarks/README.md` has the figures."""


class _Group(TyperGroup):
    """Say what is missing in a line instead of a traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            with memory_shortage_named("This command", "end other programs there, or use a device that has more"):
                return super().invoke(ctx)
        except PrerequisiteError as error:
            refuse(error)
            raise typer.Exit(FAILED if isinstance(error, MemoryShortageError) else UNUSABLE) from error
        except KeyboardInterrupt as error:
            err().print("Interrupted. The same command goes on where it stopped.")
            raise typer.Exit(INTERRUPTED) from error


app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    pretty_exceptions_short=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Train and evaluate unified multimodal models, and say by how much a method helps.",
)


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        emit(f"segros {version('segros')}")
        raise typer.Exit


@app.callback()
def _prepare(
    _: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log what happens to standard error.")] = False,
) -> None:
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING, format="%(levelname)s %(name)s: %(message)s", force=True
    )
    # Progress bars of libraries would mix with ours.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


app.command("run")(running.run)
app.command("train")(running.train)
app.command("eval")(running.evaluate)
app.command("score")(results.score)
app.command("leaderboard")(results.leaderboard)
app.command("compare")(results.compare)
app.command("report")(results.report)
app.command("paper")(results.paper)
app.command("explain")(info.explain)
app.command("list")(info.show_list)
app.command("doctor")(info.doctor)
app.add_typer(data.data, name="data")
app.add_typer(judge.judge, name="judge")
app.command("export")(data.export)


def main() -> None:
    """Run the command line."""
    for name, value in PASSIVE_THREADS.items():  # Read once, when torch loads its OpenMP runtime: before any import.
        os.environ.setdefault(name, value)
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:  # `nohup` has the signal ignored, and that stays so.
            signal.signal(number, _end)
    app()


def _end(number: int, _: Any) -> None:
    """End by way of every `finally`, so that what this process started ends with it."""
    for other in (signal.SIGTERM, signal.SIGHUP):  # A second one would stop the ending half-way.
        signal.signal(other, signal.SIG_IGN)
    raise SystemExit(128 + number)


if __name__ == "__main__":
    main()
