"""T2I-CompBench: the judge's texts, how replies are read, the two means, folders, and the embedded world."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from segros_eval.benchmarks.base import JudgeReply, JudgeRequest, Sample, Score, Tools
from segros_eval.benchmarks.compbench.benchmark import CompBench
from segros_eval.benchmarks.compbench.folder import read_compbench_folder
from segros_eval.benchmarks.compbench.rules import (
    noun_chunks,
    parse_json_score,
    parse_srum,
    product_score,
    rubric_texts,
    srum_text,
)
from segros_eval.shapes.judge import SceneJudge
from segros_eval.statistics.bootstrap import point_estimates
from segros_train.data.shapes.prompts import compositional_prompts, dense_prompts, statements
from segros_train.data.shapes.world import render, sample_scene
from segros_train.errors import PrerequisiteError

PICTURE = Image.new("RGB", (8, 8))


class Says:
    """Answers by a rule and remembers what it was asked."""

    def __init__(self, rule: Callable[[JudgeRequest], str | None]) -> None:
        self.rule, self.asked = rule, list[JudgeRequest]()

    def ask(self, requests: Sequence[JudgeRequest]) -> list[JudgeReply]:
        self.asked += requests
        said = [self.rule(request) for request in requests]
        return [JudgeReply(text, "" if text is not None else "no connection") for text in said]


def row(number: int, category: str, prompt: str = "a red disk") -> dict[str, Any]:
    return {"question_id": number, "category": category, "prompt": prompt}


def sample(number: int, category: str, prompt: str = "a red disk") -> Sample:
    return Sample(f"{number}/00000", prompt, "image", prompt, metadata=row(number, category, prompt))


def scored(bench: CompBench, samples: Sequence[Sample], rule: Callable[[JudgeRequest], str | None]) -> list[Score]:
    return bench.score(samples, [PICTURE] * len(samples), Tools(judge=Says(rule)))


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        ('{"score": 85, "explanation": "good"}', 85),
        ('```json\n{\n "score": 7,\n "explanation": "x"\n}\n```', 7),
        ('Sure: {"score": 40, "explanation": "so so"} Bye.', 40),
        ('"score": "61"', 61),
        ('{"score": "61", "explanation": "x"}', 61),
        ('{"score": 12, "explanation": "a "quote" inside"}', 12),
        ('{"score": 150, "explanation": "x"}', 150),
        ("a score of 80", None),
        ('{"score": good}', None),
        ("", None),
    ],
)
def test_a_free_reply_is_read_as_upstream_reads_it(reply: str, score: int | None) -> None:
    assert parse_srum(reply) == score


@pytest.mark.parametrize(
    "reply", ("85", '{"score": 850, "explanation": "x"}', '{"score": true, "explanation": "x"}', "{")
)
def test_a_demanded_form_is_held_to(reply: str) -> None:
    assert parse_json_score(reply) is None


def test_a_reply_that_cannot_be_read_is_counted_and_enters_only_the_strict_mean() -> None:
    bench = CompBench()
    replies = iter(['{"score": 80, "explanation": ""}', "I cannot say."])
    scores = scored(bench, [sample(1, "color"), sample(2, "color")], lambda _: next(replies))
    assert [score.status for score in scores] == ["scored", "unscored"]
    assert "unparsed reply" in scores[1].reason and scores[1].raw == {"replies": ["I cannot say."]}
    metrics = point_estimates(bench.metrics, scores)
    assert metrics["color"] == metrics["overall"] == 80.0
    assert metrics["strict_color"] == metrics["strict_overall"] == pytest.approx((80 - 1) / 2)


def test_a_score_beyond_the_scale_is_no_value() -> None:
    bench = CompBench()
    (score,) = scored(bench, [sample(1, "color")], lambda _: '{"score": 150, "explanation": ""}')
    assert score.value is None and "not within 0 to 100" in score.reason
    assert point_estimates(bench.metrics, [score])["strict_color"] == 150.0


def test_an_image_that_is_missing_enters_neither_mean() -> None:
    bench = CompBench()
    scores = bench.score(
        [sample(1, "color"), sample(2, "color")],
        [PICTURE, None],
        Tools(judge=Says(lambda _: '{"score": 50, "explanation": ""}')),
    )
    metrics = point_estimates(bench.metrics, scores)
    assert metrics["color"] == metrics["strict_color"] == 50.0


def test_complex_is_the_mean_of_its_three_groups_and_the_overall_of_all_categories() -> None:
    bench = CompBench()
    marks = {"color": 10, "complex": 30, "complex_action": 60, "complex_spatial": 90, "non-spatial": 20}
    samples = [sample(number, category) for number, category in enumerate(marks)]
    values = iter(marks.values())
    scores = scored(bench, samples, lambda _: json.dumps({"score": next(values), "explanation": ""}))
    metrics = point_estimates(bench.metrics, scores)
    assert metrics["complex"] == pytest.approx(60)
    assert metrics["non_spatial"] == 20.0
    assert metrics["overall"] == pytest.approx((10 + 60 + 20) / 3)


def test_a_category_that_is_asked_for_and_has_no_score_leaves_no_overall() -> None:
    bench = CompBench()
    scores = bench.score(
        [sample(1, "color"), sample(2, "shape")],
        [PICTURE, None],
        Tools(judge=Says(lambda _: '{"score": 50, "explanation": ""}')),
    )
    metrics = point_estimates(bench.metrics, scores)
    assert metrics["color"] == 50.0 and metrics["shape"] is None and metrics["overall"] is None


def test_the_same_text_is_asked_for_every_category() -> None:
    judge = Says(lambda _: '{"score": 1, "explanation": ""}')
    samples = [sample(number, category) for number, category in enumerate(("color", "complex_action", "3d_spatial"))]
    CompBench().score(samples, [PICTURE] * 3, Tools(judge=judge))
    assert {request.turns for request in judge.asked} == {(srum_text("a red disk"),)}
    assert {request.max_tokens for request in judge.asked} == {512}


def test_the_other_protocol_describes_first_and_multiplies_over_noun_phrases() -> None:
    def rule(request: JudgeRequest) -> str:
        if len(request.turns) == 1:
            return "A disk and a square."
        return json.dumps({"score": 75 if "red disk" in request.turns[1] else 20, "explanation": ""})

    judge = Says(rule)
    bench = CompBench(rules="compbench-mllm-v1")
    (score,) = bench.score([sample(1, "color", "a red disk and a blue square")], [PICTURE], Tools(judge=judge))
    assert score.value == pytest.approx(0.75 * 0.2)
    assert [len(request.turns) for request in judge.asked] == [1, 2, 2]
    assert all(request.answers == ("A disk and a square.",) for request in judge.asked[1:])
    assert bench.protocol != CompBench().protocol


def test_of_several_noun_phrases_one_unread_reply_leaves_the_image_unscored() -> None:
    def rule(request: JudgeRequest) -> str:
        first = len(request.turns) == 1 or "red disk" in request.turns[1]
        return json.dumps({"score": 75, "explanation": ""}) if first else "no"

    bench = CompBench(rules="compbench-mllm-v1")
    (score,) = scored(bench, [sample(1, "color", "a red disk and a blue square")], rule)
    assert score.value is None and "unparsed" in score.reason


def second_turns(judge: Says) -> list[JudgeRequest]:
    return [request for request in judge.asked if len(request.turns) == 2]


@pytest.mark.parametrize(
    ("free", "value"),
    [
        ('Sure: {"score": 40, "explanation": "so so"}', 0.4),
        ('{"score": 85, "explanation": "cut of', 0.85),
        ("a score of 80", None),
        ('{"score": 850, "explanation": ""}', None),
    ],
)
def test_a_reply_that_breaks_its_form_is_asked_for_once_more_as_free_text(free: str, value: float | None) -> None:
    def rule(request: JudgeRequest) -> str:
        if len(request.turns) == 1:
            return "A disk."
        return free if request.schema is None else "no form"

    judge = Says(rule)
    (score,) = CompBench(rules="compbench-mllm-v1").score([sample(1, "spatial")], [PICTURE], Tools(judge=judge))
    first, second = second_turns(judge)
    assert first.schema is not None and second == replace(first, schema=None)
    assert score.raw == {"replies": [free]} and score.value == value
    assert score.status == ("scored" if value is not None else "unscored")
    assert ("unparsed reply" in score.reason) == (value is None)


def test_only_the_noun_phrase_whose_reply_cannot_be_read_is_asked_for_again() -> None:
    def rule(request: JudgeRequest) -> str:
        good = len(request.turns) == 1 or "red disk" in request.turns[1] or request.schema is None
        return json.dumps({"score": 50, "explanation": ""}) if good else "no"

    judge = Says(rule)
    samples = [sample(1, "color", "a red disk and a blue square")]
    (score,) = CompBench(rules="compbench-mllm-v1").score(samples, [PICTURE], Tools(judge=judge))
    assert score.value == pytest.approx(0.25)
    assert ["blue square" in request.turns[1] for request in second_turns(judge)] == [False, True, True]


def test_the_default_protocol_asks_once_because_upstream_does() -> None:
    judge = Says(lambda _: "I cannot say.")
    (score,) = CompBench().score([sample(1, "color")], [PICTURE], Tools(judge=judge))
    assert len(judge.asked) == 1 and score.value is None


@pytest.mark.parametrize(
    ("prompt", "chunks"),
    [
        ("a green bench and a blue bowl", ["a green bench", "a blue bowl"]),
        ("The black chair is on top of the blue rug.", ["The black chair", "the blue rug"]),
        ("a red disk", ["a red disk"]),
        ("A white cat, a brown dog and a big tree", ["A white cat", "a brown dog", "a big tree"]),
    ],
)
def test_noun_phrases_are_cut_by_a_rule(prompt: str, chunks: list[str]) -> None:
    assert noun_chunks(prompt) == chunks


def test_scores_multiply_on_their_scale() -> None:
    assert product_score([50, 50]) == pytest.approx(25)
    assert product_score([100]) == 100


def test_rubrics_name_the_thing_and_its_attribute() -> None:
    (first, second) = rubric_texts("color", "a green bench and a blue bowl")
    assert "100: there is bench, and bench is green" in first
    assert "20: there is bowl, but it is not blue" not in first and "20: there is bowl, but it is not blue" in second


def test_official_files_that_are_not_there_are_named(tmp_path: Path) -> None:
    for rules in ("srum-2025-11", "compbench-mllm-v1"):
        with pytest.raises(PrerequisiteError, match="segros data fetch compbench"):
            CompBench(rules=rules).prompts("photo", tmp_path)


def test_rows_of_one_prompt_share_its_pictures_and_faults_are_named(tmp_path: Path) -> None:
    def write(name: str, shade: int, size: tuple[int, int] = (8, 8)) -> None:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (shade, 0, 0)).save(path)

    write("complex/samples/a dog chases a cat._000000.png", 1)
    write("color/samples/a red disk_000000.png", 2)
    write("color/samples/another red disk_000001.png", 2)
    write("shape/samples/a round disk_000002.png", 3, (9, 8))
    write("shape/samples/nothing asked_000003.png", 4)
    prompts = [
        row(1, "complex", "a dog chases a cat."),
        row(2, "complex_action", "a dog chases a cat."),
        row(3, "color", "a red disk"),
        row(4, "color", "another red disk"),
        row(5, "shape", "a round disk"),
        row(6, "shape", "a square disk"),
    ]
    found = read_compbench_folder(tmp_path, prompts=prompts, images_per_prompt=1)
    assert [one.item_id for one in found.samples] == ["1/000000", "2/000000", "3/000000"]
    assert found.paths[0] == found.paths[1]
    assert Counter(fault.kind for fault in found.faults) == {
        "duplicate image": 1,
        "wrong size": 1,
        "missing prompt": 1,
        "foreign prompt": 1,
    }
    assert len(found.unscored) == 4


def test_a_picture_of_another_size_than_is_asked_for_is_unscored(tmp_path: Path) -> None:
    for number, side in ((1, 8), (2, 9)):
        Image.new("RGB", (side, side), (number, 0, 0)).save(tmp_path / f"{number}.png")
    prompts = [row(1, "color", "a red disk"), row(2, "color", "a blue disk")]

    def wrong(side_px: int | None) -> list[str]:
        found = read_compbench_folder(tmp_path, prompts=prompts, images_per_prompt=1, side_px=side_px)
        assert len(found.samples) + len(found.unscored) == 2
        return [fault.item for fault in found.faults if fault.kind == "wrong size"]

    assert wrong(8) == ["2.png"] and wrong(9) == ["1.png"]
    assert wrong(None) == ["1.png", "2.png"], "no size is that of most"


def test_every_prompt_of_the_embedded_world_is_understood_by_its_reader() -> None:
    for record in compositional_prompts(50):
        assert statements(record["prompt"])
    for record in dense_prompts(50):
        for question in record["questions"]:
            assert len(statements(question["text"])) == 1
    with pytest.raises(ValueError, match="No prompt or question"):
        statements("a dog on a mat")


def test_graphs_of_the_embedded_world_ask_about_parents_first() -> None:
    for record in dense_prompts(50):
        for question in record["questions"]:
            assert all(parent < question["id"] for parent in question["parents"])


def test_the_reader_answers_about_painted_scenes_as_they_are() -> None:
    wrong = 0
    for index in range(60):
        scene = sample_scene(12, index, tag="position")
        first, second = scene.objects
        image = render(scene)
        truths = {
            f"Is there a {first.shape}?": "yes",
            f"Is the {first.shape} {first.color}?": "yes",
            f"Is the {first.shape} {second.color}?": "no",
            f"Is the {first.shape} {scene.relation} the {second.shape}?": "yes",
            f"Is the {second.shape} {scene.relation} the {first.shape}?": "no",
            f"Is there exactly one {second.shape}?": "yes",
        }
        replies = SceneJudge().ask([JudgeRequest(image, (text,), "test") for text in truths])
        wrong += [reply.text for reply in replies] != list(truths.values())
    assert wrong <= 1


def test_the_reader_scores_a_prompt_by_the_share_of_what_is_shown() -> None:
    scene = sample_scene(3, 4, tag="color_attr")
    (first, second) = scene.objects
    right = f"a {first.color} {first.shape} and a {second.color} {second.shape}"
    half = f"a {first.color} {first.shape} and a {first.color} {second.shape}"
    image = render(scene)
    replies = SceneJudge().ask([JudgeRequest(image, (srum_text(text),), "test") for text in (right, half)])
    assert [parse_srum(reply.text or "") for reply in replies] == [100, 50]
