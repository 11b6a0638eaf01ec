"""A run walks through the code one way: evaluation calls training, and training hardly ever calls back."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from climbs import Trace, tiny_run

MAX_CLIMBS = 3
MAX_FILES_OF_A_PLAN = 14
TOUR = Path(__file__).parents[2] / "docs" / "architecture.md"
STATION = re.compile(r"^\d+\. `(\S+)` `(\S+)`", re.MULTILINE)


def section(title: str) -> str:
    """Return the text below a head of the tour."""
    return TOUR.read_text(encoding="utf-8").partition(f"## {title}\n")[2].partition("\n## ")[0]


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> tuple[Trace, Trace]:
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEGROS_HOME", str(folder / "home"))
        return tiny_run(folder / "runs")


def test_a_tiny_run_climbs_at_most_three_times_from_training_into_evaluation(traces: tuple[Trace, Trace]) -> None:
    assert traces[1].climbs.total() <= MAX_CLIMBS, dict(traces[1].climbs)


def test_what_climbs_is_the_report_of_each_update_alone(traces: tuple[Trace, Trace]) -> None:
    report = ("segros_train/training/metrics.py:Metrics._write", "segros_eval/pipeline/progress.py:Steps.__call__")
    assert dict(traces[1].climbs) == {report: 2}


def test_a_plan_enters_at_most_fourteen_files_and_climbs_from_none(traces: tuple[Trace, Trace]) -> None:
    planning = traces[0]
    assert not planning.climbs
    assert "segros_eval/pipeline/plan.py" in planning.files
    assert len(planning.files) <= MAX_FILES_OF_A_PLAN, planning.files


@pytest.mark.parametrize("title", ["From a caption to the loss", "From a prompt to a cell of a leaderboard"])
def test_the_tour_walks_through_the_files_in_the_order_of_the_calls_and_never_goes_back(
    traces: tuple[Trace, Trace], title: str
) -> None:
    stations = [f"{file}:{function}" for file, function in STATION.findall(section(title))]
    assert len(stations) >= 9
    assert len({station.partition(":")[0] for station in stations}) == len(stations)
    calls = iter(callee for _, callee in traces[1].calls)
    for station in stations:
        assert station in calls, f"{station} is not called after the station before it"
