"""A real vLLM server of ours: found again, started again, and T2I-CompBench scored with it from end to end."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny_qwen

from segros_eval.benchmarks.base import EvalTask, JudgeRequest, Score, Tools
from segros_eval.benchmarks.compbench.benchmark import CompBench
from segros_eval.benchmarks.compbench.rules import SCORE_SCHEMA
from segros_eval.judges.client import JudgeClient
from segros_eval.judges.vllm_server import JudgeServer, environment
from segros_eval.pipeline.judges import Judges
from segros_eval.pipeline.score import score_folder
from segros_train.data.shapes.prompts import compositional_prompts
from segros_train.data.shapes.sets import GenerationSet

PER_CATEGORY = 4


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    if not (environment() / "segros.json").is_file():
        message = "vLLM's environment is not here: `nox -s judge` builds it"
        pytest.fail(message) if os.environ.get("SEGROS_TEST_JUDGE") else pytest.skip(message)
    return str(tiny_qwen.build(tmp_path_factory.mktemp("tiny") / "qwen"))


@pytest.fixture(scope="module")
def judge(model: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[JudgeClient]:
    with Judges(log=tmp_path_factory.mktemp("log") / "judge.log") as judges:
        found = judges.open(model)
        yield found
        found.close()


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    scenes = GenerationSet(seed=4)
    for number, row in enumerate(compositional_prompts(PER_CATEGORY)):
        folder = root / row["category"] / "samples"
        folder.mkdir(parents=True, exist_ok=True)
        scenes[number].image.save(folder / f"{row['prompt']}_000000.png")
    return root


def server_pid(judge: JudgeClient) -> int:
    # A session that was killed may have left another server's record.
    state = max((environment().parent / "servers").glob("*.json"), key=lambda path: path.stat().st_mtime)
    return int(json.loads(state.read_text(encoding="utf-8"))["pid"])


def test_demands_are_obeyed_by_the_real_server(judge: JudgeClient) -> None:
    image = GenerationSet()[0].image
    choice, scored = judge.ask(
        [
            JudgeRequest(image, ("Is there a circle?",), "test-v1", max_tokens=4, choices=("yes", "no")),
            JudgeRequest(image, ("Give a score.",), "test-v1", max_tokens=256, schema=SCORE_SCHEMA),
        ]
    )
    assert judge.engine.startswith("vllm 0.")
    assert choice.text in ("yes", "no"), choice.reason
    assert scored.text is None or 0 <= json.loads(scored.text)["score"] <= 100


def test_a_second_process_would_find_the_server_and_leave_it(judge: JudgeClient, model: str) -> None:
    other = JudgeServer(model)
    assert other.start() == judge.url
    assert other.record["starts"] == 0


def test_compbench_is_scored_end_to_end_though_the_server_is_killed_once(
    judge: JudgeClient, model: str, images: Path
) -> None:
    pid = server_pid(judge)
    killed = threading.Event()
    num_before = judge.record["num_asked"]

    def kill_in_the_middle() -> None:
        while judge.record["num_asked"] - num_before < 5:
            time.sleep(0.002)
        os.killpg(pid, signal.SIGKILL)
        killed.set()

    threading.Thread(target=kill_in_the_middle, daemon=True).start()
    bench = CompBench(judge_model=model, shapes_prompts_per_category=PER_CATEGORY)
    task = EvalTask("compbench", "CompBench", bench, ("photo", "shapes"))
    scored = score_folder(task, images, tools=Tools(judge=judge), world="shapes")
    assert killed.is_set(), "the server was not killed"
    assert server_pid(judge) != pid
    assert scored.faults == ()
    assert len(scored.scores) == 5 * PER_CATEGORY
    # Random weights hardly ever write a score: a reply is there, is named, and is no value.
    assert all(score.raw is not None and score.raw["replies"] for score in scored.scores), reasons(scored.scores)
    unread = [score for score in scored.scores if score.value is None]
    assert scored.result.num_unscored == len(unread)
    assert all("unparsed reply" in score.reason for score in unread)
    assert scored.result.provenance["judge"]["server"]["starts"] == 2


def test_what_was_judged_is_not_judged_again(judge: JudgeClient, model: str, images: Path) -> None:
    bench = CompBench(judge_model=model, shapes_prompts_per_category=PER_CATEGORY)
    task = EvalTask("compbench", "CompBench", bench, ("photo", "shapes"))
    first = score_folder(task, images, tools=Tools(judge=judge), world="shapes")
    asked = judge.record["num_asked"]
    again = score_folder(task, images, tools=Tools(judge=judge), world="shapes")
    assert judge.record["num_asked"] == asked
    assert again.scores == first.scores


def reasons(scores: tuple[Score, ...]) -> list[str]:
    return [score.reason for score in scores if score.raw is None]
