"""One device serves a run: the weights have left it when a judge starts, and one judge scores everything."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import cli_world
import pytest
from judge_stub import StubJudge
from PIL import Image

from segros_eval.benchmarks.base import EvalTask, Evaluator, JudgeRequest, Metric, Sample, Score, Tools
from segros_eval.judges import flags as judge_flags
from segros_eval.judges import vllm_server
from segros_eval.pipeline import scoring
from segros_eval.pipeline.catalog import load_catalog
from segros_eval.pipeline.plan import Request, RunPlan, make_plan
from segros_eval.pipeline.progress import Silent
from segros_eval.pipeline.runner import run_plan
from segros_eval.statistics.tally import item_mean, item_tally
from segros_train.backbones import loading
from segros_train.errors import PrerequisiteError

GIB = 2**30


class Painter:
    """A backbone that paints, and refers to itself as modules do."""

    def __init__(self) -> None:
        self.itself = self

    def eval(self) -> Painter:
        return self

    def configure(self, conditioning: Any) -> None: ...

    def generate(self, prompts: Sequence[str], *, seeds: Sequence[int], settings: Any) -> Iterator[Image.Image]:
        for seed in seeds:
            yield Image.new("RGB", (8, 8), (seed, 0, 0))


@dataclasses.dataclass(frozen=True)
class Asking(Evaluator):
    """Ask a judge one question about each picture; without a judge all pictures are worth 1."""

    kind: ClassVar[Literal["image"]] = "image"

    judge_model: str
    needs: tuple[str, ...] = ("judge",)
    judge_revision: str = ""
    protocol: str = "asking-v1"

    def samples(self, world: str, data: Path | None, seeds: Sequence[int]) -> Iterator[Sample]:
        for number in range(3):
            yield Sample(f"{number}", f"{number}", "image", f"{self.judge_model} {number}", seed=seeds[0])

    def score(self, samples: Sequence[Sample], responses: Sequence[Any], tools: Tools) -> list[Score]:
        if self.needs:
            assert tools.judge is not None
            asked = [JudgeRequest(path, ("Is it red?",), "test-v1") for path in responses]
            assert [reply.text for reply in tools.judge.ask(asked)] == ["yes"] * len(samples)
        return [Score(one.item_id, one.cluster_id, None, None, "scored", 1.0) for one in samples]

    @property
    def metrics(self) -> tuple[Metric, ...]:
        return (item_mean("overall", item_tally()),)


@dataclasses.dataclass
class Run:
    """A run with a stub in the place of vLLM, and what happened in which order."""

    stub: StubJudge
    plan: Callable[..., RunPlan]
    events: list[str]

    def __call__(self, *evaluators: Asking, **options: Any) -> list[Any]:
        plan = self.plan(*evaluators)
        return run_plan(plan, out=self.stub.home / "runs", device="cpu", listener=Silent(), **options)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    monkeypatch.setenv("SEGROS_HOME", str(tmp_path))
    monkeypatch.delenv("SEGROS_JUDGE", raising=False)
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(vllm_server, "GRACE_SECONDS", 0.5)
    stub, events, painters = StubJudge(tmp_path), [], weakref.WeakSet[Painter]()
    stub.install()
    catalog = load_catalog(cli_world.declare(tmp_path / "world"))

    def load(card: Any, **how: Any) -> Painter:
        events.append("load")
        painters.add(painter := Painter())
        return painter

    def start(self: vllm_server.JudgeServer) -> str:
        starts = len(stub.starts())
        base = real_start(self)
        if len(stub.starts()) > starts:
            events.append(f"start beside {len(painters)} backbones")
        return base

    def score(waiting: Any, *arguments: Any) -> Any:
        events.append(f"score beside {len(painters)} backbones")
        return real_score(waiting, *arguments)

    def plan(*evaluators: Asking) -> RunPlan:
        made = make_plan(catalog, Request(("none",), ("micro",), ("geneval",), seeds=(0, 1)))
        cells = tuple(
            dataclasses.replace(
                made.stages[0].cells[0],
                task=EvalTask(f"asking-{number}", "Asking", one, ("photo", "shapes")),
                key=f"key-{number}",
            )
            for number, one in enumerate(evaluators)
        )
        photo = [
            dataclasses.replace(stage, card=dataclasses.replace(stage.card, world="photo"), cells=cells)
            for stage in made.stages
        ]
        return dataclasses.replace(made, stages=tuple(photo))

    real_start, real_score = vllm_server.JudgeServer.start, scoring.score_responses
    monkeypatch.setattr(loading, "load", load)
    monkeypatch.setattr(vllm_server.JudgeServer, "start", start)
    monkeypatch.setattr("segros_eval.pipeline.runner.score_responses", score)
    yield Run(stub, plan, events)


def folder(run: Run, name: str) -> str:
    path = run.stub.home / name
    path.mkdir(exist_ok=True)
    return str(path)


def test_the_weights_of_every_stage_have_left_when_the_one_judge_of_a_run_starts(run: Run) -> None:
    judge = folder(run, "judge-a")
    outcomes = run(Asking(judge), Asking(judge, needs=()), judge_flags={"max-num-seqs": "3"})
    # Stage by stage what needs the weights, then what needs none and no judge; a judge at the end, for both seeds.
    alone = "score beside 0 backbones"
    assert run.events == ["load", alone, "load", alone, alone, "start beside 0 backbones", alone]
    assert len(run.stub.starts()) == 1
    assert [outcome.cell.task.name for outcome in outcomes] == ["asking-0", "asking-1"] * 2
    assert [outcome.failure for outcome in outcomes] == [""] * 4
    told = [outcome.result.provenance["judge"]["server"] for outcome in outcomes[::2]]
    assert [one["starts"] for one in told] == [1, 1]
    place = told[0]["flags"].index("--max-num-seqs")
    assert told[0]["flags"][place + 1] == "3" and told[0]["flags"].count("--max-num-seqs") == 1


def test_no_server_is_left_after_a_run_and_a_repeated_run_starts_none(run: Run) -> None:
    judge = folder(run, "judge-a")
    run(Asking(judge))
    assert list((run.stub.home / "judge" / "servers").glob("*.json")) == []
    assert all(outcome.reused for outcome in run(Asking(judge)))
    assert len(run.stub.starts()) == 1


def test_two_judges_of_a_run_start_once_each_one_after_the_other(run: Run) -> None:
    first, second = folder(run, "judge-a"), folder(run, "judge-b")
    outcomes = run(Asking(first), Asking(second))
    assert [outcome.failure for outcome in outcomes] == [""] * 4
    served = [arguments[arguments.index("--served-model-name") + 1] for _, arguments in run.stub.starts()]
    assert served == [first, second]


def test_a_judge_that_cannot_start_leaves_the_other_cells_their_results(run: Run) -> None:
    program = run.stub.home / "judge" / "environment" / "bin" / "python"
    program.write_text("#!/bin/sh\nexit 3\n", encoding="utf-8")
    judge = folder(run, "judge-a")
    outcomes = run(Asking(judge), Asking(judge, needs=()))
    assert ["code 3" in outcome.failure for outcome in outcomes] == [True, False] * 2
    assert [outcome.result is None for outcome in outcomes] == [True, False] * 2


@pytest.mark.parametrize(
    ("size_gib", "free_gib", "expected"),
    (
        (62, [79], ("0.90", "1")),  # The 32B judge alone on a card of 80 GB.
        (62, [40, 79, 79], ("0.47", "2")),  # Each device gives the same share.
        (16, [30], ("0.35", "1")),
        (62, [79] * 4, ("0.90", "1")),
        (140, [79] * 4, ("0.90", "4")),
        (62, [30], None),
        (None, [30], ("0.35", "1")),
        (None, [1], None),
    ),
)
def test_a_server_takes_what_is_free_and_as_few_devices_as_hold_it(
    size_gib: int | None, free_gib: list[int], expected: tuple[str, str] | None
) -> None:
    size = None if size_gib is None else size_gib * GIB
    devices = [(free * GIB, 80 * GIB) for free in free_gib]
    if expected is None:
        with pytest.raises(PrerequisiteError, match=r"judge needs .* free .*--gpu-memory-utilization"):
            judge_flags.fitting(size, devices)
    else:
        assert tuple(judge_flags.fitting(size, devices).values()) == expected


def test_what_is_given_replaces_what_would_fit_and_what_is_pinned() -> None:
    given = judge_flags.given_flags(["--seed=7", "enable-chunked-prefill"], gpu_memory_utilization=0.5, port=None)
    flags = judge_flags.server_flags(
        kind="gpu", revision="r1", given=given, size=900 * GIB, devices=[(79 * GIB, 80 * GIB)]
    )
    assert flags["gpu-memory-utilization"] == "0.5" and flags["seed"] == "7" and flags["revision"] == "r1"
    line = judge_flags.command_line(flags)
    assert line.count("--seed") == 1 and line[-1] != "" and "--enable-chunked-prefill" in line
    assert "tensor-parallel-size" not in flags


@pytest.mark.parametrize("flag", ("", "=3", "max num seqs=3", "model=other", "--host=0.0.0.0"))
def test_a_flag_that_cannot_be_given_is_refused_with_what_to_do(flag: str) -> None:
    with pytest.raises(PrerequisiteError, match=r"--judge-flag .*(Example|--set judge_model)"):
        judge_flags.given_flags([flag])
