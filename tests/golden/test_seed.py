"""SEED-Bench against lmms-eval and VLMEvalKit, over recorded answers, those about videos included."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from questions_golden import Case, asked, differing, judged, load

from segros_eval.benchmarks.vqa.categories import DIMENSIONS
from segros_eval.benchmarks.vqa.choices import first_character
from segros_eval.benchmarks.vqa.seed import SEED
from segros_eval.statistics.bootstrap import point_estimates


@pytest.fixture(scope="module")
def recorded(golden_set: Callable[[str], Path]) -> tuple[list[Case], Mapping[str, Any]]:
    return load(golden_set("seed"))


def metrics_of(evaluator: SEED, cases: Any) -> Mapping[str, float | None]:
    return point_estimates(
        evaluator.metrics, judged(evaluator, asked(cases, cluster="data_id", group="question_type_id"), cases)
    )


def test_seed_asks_what_lmms_eval_asks(recorded: Any) -> None:
    cases, _ = recorded
    assert differing([SEED().prompt(case["doc"]) for case in cases], [case["prompt"] for case in cases], cases) == []


def test_seed_reads_the_first_character_as_lmms_eval_does(recorded: Any) -> None:
    cases, _ = recorded
    found = [first_character(case["response"]) for case in cases]
    assert differing(found, [case["parsed"] for case in cases], cases) == []


def test_seed_scores_every_answer_as_lmms_eval_does(recorded: Any) -> None:
    cases, _ = recorded
    for rules in ("standard", "lmms-eval"):
        scores = judged(SEED(rules=rules), asked(cases, cluster="data_id", group="question_type_id"), cases)
        assert differing([score.value for score in scores], [case["score"] for case in cases], cases) == []


def test_seed_reads_every_answer_as_vlmevalkit_does_under_its_name_and_under_robust(recorded: Any) -> None:
    cases, _ = recorded
    theirs = [case["vlmevalkit_can_infer"] for case in cases]
    scores = judged(SEED(), asked(cases, cluster="data_id", group="question_type_id"), cases)
    assert differing([score.raw["robust"] for score in scores], theirs, cases) == []
    right = sum(letter == case["doc"]["answer"] for letter, case in zip(theirs, cases, strict=True))
    assert metrics_of(SEED(), cases)["robust"] == pytest.approx(100 * right / len(cases))
    assert metrics_of(SEED(rules="vlmevalkit"), cases)["accuracy"] == pytest.approx(100 * right / len(cases))


def test_seed_sums_up_as_lmms_eval_does(recorded: Any) -> None:
    cases, aggregate = recorded
    parts = {
        "seed_image": [case for case in cases if case["doc"]["data_type"] == "image"],
        "seed_video": [case for case in cases if case["doc"]["data_type"] == "video"],
        "seed_all": cases,
    }
    found = {name: metrics_of(SEED(), part)["accuracy"] for name, part in parts.items() if part}
    assert found == {name: pytest.approx(100 * aggregate[name]) for name in found}


def test_seed_sums_up_each_dimension(recorded: Any) -> None:
    cases, aggregate = recorded
    for number, share in aggregate["per_question_type_id"].items():
        part = [case for case in cases if str(case["doc"]["question_type_id"]) == number]
        assert metrics_of(SEED(), part)["accuracy"] == pytest.approx(100 * share)
    named = [
        {**case, "doc": {**case["doc"], "dimension": DIMENSIONS[case["doc"]["question_type_id"]]}}
        for case in cases
        if case["doc"]["question_type_id"] in DIMENSIONS
    ]
    scores = judged(SEED(), asked(named, cluster="data_id", group="dimension"), named)
    metrics = point_estimates(SEED().metrics, scores)
    for number, name in DIMENSIONS.items():
        if str(number) in aggregate["per_question_type_id"]:
            assert metrics[name] == pytest.approx(100 * aggregate["per_question_type_id"][str(number)])
