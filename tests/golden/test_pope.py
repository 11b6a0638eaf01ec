"""POPE against lmms-eval, VLMEvalKit and POPE's own script, over recorded answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from questions_golden import Case, asked, differing, judged, load

from segros_eval.benchmarks.vqa.categories import SPLITS
from segros_eval.benchmarks.vqa.pope import POPE
from segros_eval.benchmarks.vqa.yes_no import exact, first_sentence
from segros_eval.statistics.bootstrap import point_estimates

NAMES = {"accuracy": "accuracy", "f1": "f1_score", "precision": "precision", "recall": "recall"}


@pytest.fixture(scope="module")
def recorded(golden_set: Callable[[str], Path]) -> tuple[list[Case], Mapping[str, Any]]:
    return load(golden_set("pope"))


def metrics_of(evaluator: POPE, cases: Any) -> Mapping[str, float | None]:
    samples = asked(cases, cluster="image_source", group="category")
    return point_estimates(evaluator.metrics, judged(evaluator, samples, cases))


def percent(values: Mapping[str, float], names: Mapping[str, str] = NAMES) -> dict[str, Any]:
    return {mine: pytest.approx(100 * values[theirs]) for mine, theirs in names.items()}


def test_pope_asks_what_lmms_eval_asks(recorded: Any) -> None:
    cases, _ = recorded
    assert differing([POPE().prompt(case["doc"]) for case in cases], [case["prompt"] for case in cases], cases) == []


def test_pope_reads_every_answer_as_vlmevalkit_does(recorded: Any) -> None:
    cases, _ = recorded
    for rules in ("standard", "vlmevalkit"):
        scores = judged(POPE(rules=rules), asked(cases, cluster="image_source", group="category"), cases)
        found = [(score.parsed or "unknown").capitalize() for score in scores]
        assert differing(found, [case["vlmevalkit_extracted"] for case in cases], cases) == []


def test_pope_reads_and_scores_every_answer_as_lmms_eval_does_under_its_name(recorded: Any) -> None:
    cases, _ = recorded
    scores = judged(POPE(rules="lmms-eval"), asked(cases, cluster="image_source", group="category"), cases)
    theirs = [case["parsed"] if case["parsed"] in ("yes", "no") else None for case in cases]
    assert differing([score.parsed for score in scores], theirs, cases) == []
    assert differing([score.value for score in scores], [case["score"] for case in cases], cases) == []
    assert differing([exact(case["response"]) for case in cases], theirs, cases) == []


def test_pope_reads_every_answer_as_its_own_script_does(recorded: Any) -> None:
    cases, _ = recorded
    found = [first_sentence(case["response"]) for case in cases]
    assert differing(found, [case["official_parsed"] for case in cases], cases) == []


def test_pope_sums_up_as_lmms_eval_does_under_its_name_and_under_strict(recorded: Any) -> None:
    cases, aggregate = recorded
    metrics = metrics_of(POPE(rules="lmms-eval"), cases)
    expected = percent(aggregate["lmms_eval"]["overall"], {**NAMES, "yes_ratio": "yes_ratio"})
    assert {name: metrics[name] for name in expected} == expected
    strict = metrics_of(POPE(), cases)
    assert {name: strict[f"strict_{name}"] for name in ("accuracy", "f1")} == {
        name: expected[name] for name in ("accuracy", "f1")
    }


@pytest.mark.parametrize("split", SPLITS)
def test_pope_sums_up_each_split_as_lmms_eval_and_the_official_script_do(recorded: Any, split: str) -> None:
    cases, aggregate = recorded
    part = [case for case in cases if case["doc"]["category"] == split]
    if not part:
        pytest.skip(f"the golden set has no case of the split {split}")
    expected = percent(aggregate["lmms_eval"][split], {**NAMES, "yes_ratio": "yes_ratio"})
    alone, whole = metrics_of(POPE(rules="lmms-eval"), part), metrics_of(POPE(rules="lmms-eval"), cases)
    assert {name: alone[name] for name in expected} == expected
    assert {name: whole[f"{split}_{name}"] for name in ("accuracy", "f1")} == {
        name: expected[name] for name in ("accuracy", "f1")
    }
    official = percent(aggregate["official"][split], {"accuracy": "accuracy", "f1": "f1_score"})
    assert {name: metrics_of(POPE(), part)[f"official_{name}"] for name in official} == official


def test_pope_sums_up_the_official_reading_as_the_official_script_does(recorded: Any) -> None:
    cases, aggregate = recorded
    metrics = metrics_of(POPE(), cases)
    expected = percent(aggregate["official"]["overall"], {"accuracy": "accuracy", "f1": "f1_score"})
    assert {name: metrics[f"official_{name}"] for name in expected} == expected
    assert metrics["official_mean_f1"] == pytest.approx(100 * aggregate["official_mean_f1_over_splits"])


def test_pope_counts_an_unread_answer_as_wrong_and_as_no(recorded: Any) -> None:
    cases, _ = recorded
    metrics = metrics_of(POPE(), cases)
    found = [case["vlmevalkit_extracted"].lower() for case in cases]
    gold = [case["doc"]["answer"] for case in cases]
    right = sum(mine == theirs for mine, theirs in zip(found, gold, strict=True))
    hits = sum(mine == theirs == "yes" for mine, theirs in zip(found, gold, strict=True))
    assert metrics["accuracy"] == pytest.approx(100 * right / len(cases))
    assert metrics["recall"] == pytest.approx(100 * hits / gold.count("yes"))
    assert metrics["precision"] == pytest.approx(100 * hits / found.count("yes"))
    assert metrics["yes_ratio"] == pytest.approx(100 * found.count("yes") / len(cases))
    assert metrics["unparsed"] == pytest.approx(100 * found.count("unknown") / len(cases))
