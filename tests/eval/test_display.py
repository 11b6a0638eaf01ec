"""Tables on a terminal: no row without its method, however narrow the terminal is."""

import io
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from segros_eval.benchmarks.base import Interval, Result
from segros_eval.pipeline.runner import Outcome
from segros_eval.reporting.published import load_reference
from segros_eval.reporting.terminal import show_outcomes, show_result

TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
METHODS = {"none": "w/o SFT", "segros": "Ours", "drop-loss": "Ours (drop-loss)"}


def outcome(method: str) -> Outcome:
    result = Result(
        method=method,
        backbone="harmon-tiny",
        evaluator="geneval",
        metrics={"overall": 73.2, **dict.fromkeys(TAGS, 91.5)},
        intervals={"overall": Interval(69.5, 77.0, "prompt-clustered bootstrap")},
        num_samples=432,
        num_unparsed=0,
        num_unscored=0,
        seeds=(0,),
        protocol="geneval@test",
        world="shapes",
        key=method,
        provenance={},
    )
    stage = SimpleNamespace(card=SimpleNamespace(title="Harmon-tiny"), task=SimpleNamespace(title=METHODS[method]))
    return Outcome(stage, SimpleNamespace(task=SimpleNamespace(title="GenEval")), Path("run"), result)  # type: ignore[arg-type]


@pytest.mark.parametrize("width", [60, 80, 100, 120])
def test_every_row_names_its_method_and_its_headline_in_full_whatever_the_width(width: int) -> None:
    written = io.StringIO()
    console = Console(file=written, width=width, color_system=None)
    console.print(show_outcomes([outcome(method) for method in METHODS], load_reference()))
    rows = [line for line in written.getvalue().splitlines() if "[69.5, 77.0]" in line]
    assert [row.split("  ")[0].strip() for row in rows] == list(METHODS.values())
    assert all("73.2" in row and "432" in row for row in rows)
    assert ("91.5" in rows[0]) == (width >= 100)
    assert ("Other columns need a wider terminal." in written.getvalue()) == (width < 100)


@pytest.mark.parametrize("width", [60, 80])
def test_the_headline_of_a_scored_folder_is_written_in_full_whatever_the_width(width: int) -> None:
    written = io.StringIO()
    result = outcome("none").result
    assert result is not None
    Console(file=written, width=width, color_system=None).print(show_result(result, "GenEval", load_reference()))
    (row,) = (line for line in written.getvalue().splitlines() if "73.2 [69.5, 77.0]" in line)
    assert "432" in row and "…" not in written.getvalue()
