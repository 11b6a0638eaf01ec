"""A task of lmms-eval on a backbone of ours gives the numbers that our own protocol of its name gives."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
from question_files import asked, write_files

from segros_eval.benchmarks.base import Tools
from segros_eval.benchmarks.lmms_eval import LmmsTask, harness_task
from segros_eval.benchmarks.vqa.pope import POPE
from segros_eval.pipeline.generate import BatchSize, answer_questions
from segros_eval.pipeline.store import AnswerStore
from segros_eval.statistics.bootstrap import point_estimates
from segros_train.backbone import Backbone
from segros_train.errors import PrerequisiteError

needs_harness = pytest.mark.skipif(
    importlib.util.find_spec("lmms_eval") is None, reason="needs the extra lmms: pip install segros[lmms]"
)
ANSWERS = ("Yes", "no", "Yes.", "No, there is none", "yes", "I cannot tell")


class Wavering:
    """Answers by what it sees and reads, in forms that harnesses read differently; counts its questions."""

    def __init__(self) -> None:
        self.num_asked = 0

    def answer(self, images: Sequence[Sequence[Any]], questions: Sequence[str], *, max_new_tokens: int) -> list[str]:
        self.num_asked += len(questions)
        assert max_new_tokens == 128
        return [
            ANSWERS[(sum(text.encode()) + shown[0].getpixel((5, 5))[0]) % len(ANSWERS)]
            for text, shown in zip(questions, images, strict=True)
        ]


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def run_task(name: str, folder: Path) -> None:
    from segros_eval.pipeline.lmms_eval import run_harness

    store = partial(AnswerStore, folder / "answers.jsonl", backbone_key="k")
    run_harness(cast(Backbone, Wavering()), LmmsTask(name), store=store, batch_size=1)


@needs_harness
def test_pope_of_lmms_eval_equals_our_protocol_of_that_name_and_is_not_asked_twice(tmp_path: Path) -> None:
    from segros_eval.pipeline.lmms_eval import run_harness

    data = tmp_path / "data"
    write_files(data, "pope", "hub")
    evaluator = LmmsTask("pope", dataset_path=str(next(data.rglob("*.parquet"))))
    backbone = Wavering()
    for _ in range(2):
        found = run_harness(
            cast(Backbone, backbone),
            evaluator,
            store=partial(AnswerStore, tmp_path / "harness.jsonl", backbone_key="k"),
            batch_size=5,
        )
    assert backbone.num_asked == len(asked("pope"))

    ours = POPE(rules="lmms-eval", num_rows=None)
    samples = list(ours.samples("photo", data, (0,)))
    store = AnswerStore(tmp_path / "ours.jsonl", backbone_key="k")
    answer_questions(
        cast(Backbone, Wavering()), samples, store, max_new_tokens=128, batch_size=BatchSize(7), advance=lambda n: None
    )
    scores = ours.score(samples, [store.get(sample) for sample in samples], Tools())
    metrics = point_estimates(ours.metrics, scores)
    assert 0 < (metrics["accuracy"] or 0) < 100
    names = {"accuracy": "accuracy", "f1": "f1_score", "precision": "precision", "recall": "recall"} | {
        "yes_ratio": "yes_ratio"
    }
    assert {mine: found.metrics[f"pope_{theirs}"] for mine, theirs in names.items()} == {
        mine: pytest.approx(metrics[mine]) for mine in names
    }
    assert sorted(score.value or 0 for score in found.scores) == sorted(score.value or 0 for score in scores)


@needs_harness
def test_the_command_runs_a_task_of_lmms_eval_on_a_backbone_in_our_schema(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from segros_eval.cli.app import app

    write_files(tmp_path / "data", "pope", "hub")
    arguments = ["run", "--method", "none", "--backbone", "harmon-tiny", "--eval", "lmms:pope", "--json"]
    arguments += [
        "--set",
        f"dataset_path={next((tmp_path / 'data').rglob('*.parquet'))}",
        "--out",
        str(tmp_path / "runs"),
    ]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    (cell,) = json.loads(done.stdout)["cells"]
    assert cell["evaluator"] == "lmms:pope"
    assert cell["protocol"].startswith("lmms-eval@")
    assert cell["num_samples"] == len(asked("pope"))
    assert 0 <= cell["metrics"]["pope_accuracy"] <= 100
    assert (tmp_path / "runs" / Path(cell["folder"]).name / "evals" / "lmms:pope" / "scores.jsonl").is_file()


@needs_harness
def test_a_task_that_lmms_eval_does_not_have_is_named(tmp_path: Path) -> None:
    with pytest.raises(PrerequisiteError, match="no task 'pop'"):
        run_task("pop", tmp_path)


def test_without_lmms_eval_the_message_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("segros_eval.benchmarks.lmms_eval.lmms_version", lambda: None)
    with pytest.raises(PrerequisiteError, match=r"pip install segros\[lmms\]"):
        run_task("pope", tmp_path)


def test_a_name_without_a_task_is_refused() -> None:
    with pytest.raises(PrerequisiteError, match="lmms:pope"):
        harness_task("lmms:")


def test_the_protocol_tells_the_data_in_place_of_the_tasks_own() -> None:
    assert "dataset_path=here.parquet" in LmmsTask("pope", dataset_path="here.parquet").protocol
