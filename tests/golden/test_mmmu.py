"""MMMU against its own script, lmms-eval and VLMEvalKit, over recorded answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from questions_golden import Case, asked, differing, judged, load

from segros_eval.benchmarks.vqa.categories import DOMAINS, options_of, subject_of
from segros_eval.benchmarks.vqa.choices import infer_choice, lmms_letter, official_letter, open_readings
from segros_eval.benchmarks.vqa.mmmu import MMMU, gold_answers
from segros_eval.benchmarks.vqa.questions import Rules
from segros_eval.statistics.bootstrap import point_estimates

READERS = {
    "parsed": lmms_letter,
    "official_parsed": official_letter,
    "vlmevalkit_can_infer": infer_choice,
}


@pytest.fixture(scope="module")
def recorded(golden_set: Callable[[str], Path]) -> tuple[list[Case], Mapping[str, Any]]:
    cases, aggregate = load(golden_set("mmmu"))
    return [{**c, "doc": {**c["doc"], "subject": subject_of(c["doc"]["id"])}} for c in cases], aggregate


def part(cases: Any, kind: str) -> list[Case]:
    return [case for case in cases if case["doc"]["question_type"] == kind]


def test_mmmu_asks_what_lmms_eval_asks(recorded: Any) -> None:
    cases, _ = recorded
    assert differing([MMMU().prompt(case["doc"]) for case in cases], [case["prompt"] for case in cases], cases) == []


@pytest.mark.parametrize("field", READERS)
def test_mmmu_reads_every_letter_as_each_harness_does_and_none_where_it_would_guess(recorded: Any, field: str) -> None:
    cases = part(recorded[0], "multiple-choice")
    found = [READERS[field](case["response"].strip(), options_of(case["doc"])) for case in cases]
    assert differing(found, [case[field] for case in cases], cases) == []


@pytest.mark.parametrize(("rules", "field"), [("lmms-eval", "parsed"), ("standard", "official_parsed")])
def test_mmmu_guesses_as_upstream_does_when_asked_to(recorded: Any, rules: Rules, field: str) -> None:
    cases = part(recorded[0], "multiple-choice")
    samples = asked(cases, cluster="id", group="subject")
    guessing = judged(MMMU(rules=rules, random_fallback=True), samples, cases)
    assert differing([s.parsed for s in guessing], [case[f"{field}_seed42"] for case in cases], cases) == []
    honest = judged(MMMU(rules=rules), samples, cases)
    assert differing([s.parsed for s in honest], [case[field] for case in cases], cases) == []
    flags = [case[field.replace("parsed", "random_fallback")] for case in cases]
    assert differing([s.status == "unparsed" for s in honest], flags, cases) == []
    read = [(mine.value, theirs.value) for mine, theirs in zip(honest, guessing, strict=True) if mine.parsed]
    assert read and all(mine == theirs for mine, theirs in read)


def test_mmmu_scores_letters_as_lmms_eval_does_under_its_name(recorded: Any) -> None:
    cases = part(recorded[0], "multiple-choice")
    scores = judged(MMMU(rules="lmms-eval"), asked(cases, cluster="id", group="subject"), cases)
    found = [score.value if score.parsed else None for score in scores]
    assert differing(found, [case["score"] for case in cases], cases) == []


def test_mmmu_reads_and_scores_every_free_answer_by_the_official_rule(recorded: Any) -> None:
    cases = part(recorded[0], "open")
    readings = [set(open_readings(case["response"].strip())) for case in cases]
    assert differing(readings, [set(case["parsed_list"]) for case in cases], cases) == []
    scores = judged(MMMU(), asked(cases, cluster="id", group="subject"), cases)
    assert differing([score.value for score in scores], [case["score"] for case in cases], cases) == []


def test_mmmu_scores_no_free_answer_under_the_name_of_lmms_eval(recorded: Any) -> None:
    cases = part(recorded[0], "open")
    scores = judged(MMMU(rules="lmms-eval"), asked(cases, cluster="id", group="subject"), cases)
    found = [[score.value] for score in scores]
    assert differing(found, [case["lmms_eval_current_possible_scores"] for case in cases], cases) == []


@pytest.mark.parametrize(("rules", "name"), [("standard", "reference"), ("lmms-eval", "lmms_eval_current")])
def test_mmmu_sums_up_as_upstream_does_when_it_guesses(recorded: Any, rules: Rules, name: str) -> None:
    cases, aggregate = recorded
    evaluator = MMMU(rules=rules, random_fallback=True)
    metrics = point_estimates(evaluator.metrics, judged(evaluator, asked(cases, cluster="id", group="subject"), cases))
    table = {label.removeprefix("Overall-"): row["acc"] for label, row in aggregate[name]["table"].items()}
    assert round((metrics["accuracy"] or 0) / 100, 5) == table.pop("Overall") == aggregate[name]["acc"]
    assert set(table) <= {*DOMAINS, *(subject for subjects in DOMAINS.values() for subject in subjects)}
    assert {label: round((metrics[label] or 0) / 100, 5) for label in table} == table


def test_mmmu_credits_an_unread_letter_with_the_mean_of_all_guesses(recorded: Any) -> None:
    cases, _ = recorded
    scores = judged(MMMU(), asked(cases, cluster="id", group="subject"), cases)
    metrics = point_estimates(MMMU().metrics, scores)
    unread = [len(options_of(c["doc"])) for c, s in zip(cases, scores, strict=True) if s.status == "unparsed"]
    right = sum(score.value or 0 for score in scores)
    assert metrics["accuracy"] == pytest.approx(100 * right / len(cases))
    assert metrics["expected_credit"] == pytest.approx(100 * (right + sum(1 / k for k in unread)) / len(cases))
    assert metrics["unparsed"] == pytest.approx(100 * len(unread) / len(cases))


def test_mmmu_takes_several_right_answers_as_a_list_and_as_the_text_of_one() -> None:
    assert gold_answers("['$MgS$', 'MgS']") == gold_answers(["$MgS$", "MgS"]) == ["$MgS$", "MgS"]
    assert gold_answers("[0, 1)") == ["[0, 1)"]
