"""MME against lmms-eval and VLMEvalKit, over recorded answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from questions_golden import Case, asked, differing, judged, load

from segros_eval.benchmarks.vqa.categories import COGNITION, PERCEPTION
from segros_eval.benchmarks.vqa.mme import MME
from segros_eval.benchmarks.vqa.questions import Rules
from segros_eval.statistics.bootstrap import point_estimates


@pytest.fixture(scope="module")
def recorded(golden_set: Callable[[str], Path]) -> tuple[list[Case], Mapping[str, Any]]:
    return load(golden_set("mme"))


def test_mme_asks_what_lmms_eval_asks(recorded: Any) -> None:
    cases, _ = recorded
    assert differing([MME().prompt(case["doc"]) for case in cases], [case["prompt"] for case in cases], cases) == []


@pytest.mark.parametrize("rules", ["standard", "lmms-eval"])
def test_mme_reads_and_scores_every_answer_as_lmms_eval_does(recorded: Any, rules: Rules) -> None:
    cases, _ = recorded
    scores = judged(MME(rules=rules), asked(cases, cluster="question_id", group="category"), cases)
    assert differing([score.parsed or "other" for score in scores], [case["parsed"] for case in cases], cases) == []
    assert differing([score.value for score in scores], [case["score"] for case in cases], cases) == []


def test_mme_reads_and_scores_every_answer_as_vlmevalkit_does_under_its_name(recorded: Any) -> None:
    cases, _ = recorded
    scores = judged(MME(rules="vlmevalkit"), asked(cases, cluster="question_id", group="category"), cases)
    found = [(score.parsed or "unknown").capitalize() for score in scores]
    assert differing(found, [case["vlmevalkit_extracted"] for case in cases], cases) == []
    assert differing([score.value for score in scores], [case["vlmevalkit_score"] for case in cases], cases) == []


def test_mme_sorts_categories_into_perception_and_cognition(recorded: Any) -> None:
    cases, _ = recorded
    found = ["mme_perception_score" if c["doc"]["category"] in PERCEPTION else "mme_cognition_score" for c in cases]
    assert differing(found, [case["metric_key"] for case in cases], cases) == []


def test_mme_sums_up_as_lmms_eval_does(recorded: Any) -> None:
    cases, aggregate = recorded
    metrics = point_estimates(
        MME().metrics, judged(MME(), asked(cases, cluster="question_id", group="category"), cases)
    )
    assert metrics["perception"] == pytest.approx(aggregate["mme_perception_score"])
    assert metrics["cognition"] == pytest.approx(aggregate["mme_cognition_score"])
    found = {name: metrics[name] for name in (*PERCEPTION, *COGNITION) if metrics[name] is not None}
    assert found == pytest.approx(aggregate["per_category"])


def test_mme_sums_up_as_vlmevalkit_does_under_its_name(recorded: Any) -> None:
    cases, aggregate = recorded
    evaluator = MME(rules="vlmevalkit")
    metrics = point_estimates(
        evaluator.metrics, judged(evaluator, asked(cases, cluster="question_id", group="category"), cases)
    )
    theirs = dict(aggregate["vlmevalkit"])
    assert metrics["cognition"] == pytest.approx(theirs.pop("reasoning"))
    assert {name: metrics[name] for name in theirs} == pytest.approx(theirs)
