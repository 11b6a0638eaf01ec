"""GQA against lmms-eval and VLMEvalKit, over recorded answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from questions_golden import Case, asked, differing, judged, load

from segros_eval.benchmarks.vqa.gqa import GQA
from segros_eval.statistics.bootstrap import point_estimates
from segros_eval.statistics.clustered import mean_stderr


@pytest.fixture(scope="module")
def recorded(golden_set: Callable[[str], Path]) -> tuple[list[Case], Mapping[str, Any]]:
    return load(golden_set("gqa"))


def test_gqa_asks_what_lmms_eval_asks(recorded: Any) -> None:
    cases, _ = recorded
    assert differing([GQA().prompt(case["doc"]) for case in cases], [case["prompt"] for case in cases], cases) == []


def test_gqa_scores_every_answer_as_each_harness_does(recorded: Any) -> None:
    cases, _ = recorded
    for evaluator, field in (
        (GQA(), "score"),
        (GQA(rules="lmms-eval"), "score"),
        (GQA(rules="vlmevalkit"), "strict_lower_score"),
    ):
        scores = judged(evaluator, asked(cases, cluster="imageId"), cases)
        assert differing([score.value for score in scores], [case[field] for case in cases], cases) == []


def test_gqa_sums_up_as_each_harness_does(recorded: Any) -> None:
    cases, aggregate = recorded
    scores = judged(GQA(), asked(cases, cluster="imageId"), cases)
    metrics = point_estimates(GQA().metrics, scores)
    assert metrics["accuracy"] == pytest.approx(100 * aggregate["exact_match"])
    assert metrics["strict_lower"] == pytest.approx(aggregate["strict_lower_accuracy_pct"])
    values = [score.value for score in scores if score.value is not None]
    assert mean_stderr(values) == pytest.approx(aggregate["exact_match_stderr"])
