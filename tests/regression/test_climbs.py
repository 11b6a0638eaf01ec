"""A run walks through the code one way: evaluation calls training, and training hardly ever calls back."""

from __future__ import annotations

import pytest
from climbs import Trace, tiny_run

MAX_CLIMBS = 3
MAX_FILES_OF_A_PLAN = 12


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


def test_a_plan_enters_a_dozen_files_and_climbs_from_none(traces: tuple[Trace, Trace]) -> None:
    planning = traces[0]
    assert not planning.climbs
    assert "segros_eval/pipeline/plan.py" in planning.files
    assert len(planning.files) <= MAX_FILES_OF_A_PLAN, planning.files


def test_the_trace_reaches_from_the_plan_through_training_to_the_scores(traces: tuple[Trace, Trace]) -> None:
    stations = ("pipeline/plan.py", "training/loop.py", "showo/adapter.py", "showo/sampling.py", "vqa/pope.py")
    for station in stations:
        assert any(file.endswith(station) for file in traces[1].files), station
