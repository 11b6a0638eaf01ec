"""DPG-Bench: dependencies, the two rules, what is unscored, the folder layouts, and the embedded world's answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from segros_eval.benchmarks.base import JudgeReply, JudgeRequest, Sample, Score, Tools
from segros_eval.benchmarks.dpgbench.benchmark import DPGBench, answered
from segros_eval.benchmarks.dpgbench.folder import read_dpgbench_folder
from segros_eval.benchmarks.dpgbench.rules import Answered, Question, read_graphs, score_picture, summarise
from segros_eval.statistics.bootstrap import point_estimates
from segros_train.errors import PrerequisiteError

CHAIN = (
    Question(1, "entity - whole", "a?"),
    Question(2, "attribute - color", "b?", (1,)),
    Question(3, "global -", "c?", (2,)),
)


class Says:
    """Gives the same answers to the same question texts, and counts what it is asked."""

    def __init__(self, answers: dict[str, str | None]) -> None:
        self.answers, self.asked = answers, list[JudgeRequest]()

    def ask(self, requests: Sequence[JudgeRequest]) -> list[JudgeReply]:
        self.asked += requests
        said = [self.answers[request.turns[0]] for request in requests]
        return [JudgeReply(text, "" if text is not None else "no connection") for text in said]


def record(item: str, graph: Sequence[Question] = CHAIN, *, heads_table: bool = False) -> dict[str, Any]:
    questions = [{"id": q.id, "category": q.category, "text": q.text, "parents": list(q.parents)} for q in graph]
    return {"item_id": item, "prompt": f"prompt of {item}", "questions": questions, "heads_table": heads_table}


def sample(item: str, draw: int = 0, **options: Any) -> Sample:
    return Sample(f"{item}/{draw:05d}", item, "image", f"prompt of {item}", metadata=record(item, **options))


PICTURE = Image.new("RGB", (8, 8))


def scores_of(bench: DPGBench, samples: Sequence[Sample], answers: dict[str, str | None]) -> list[Score]:
    return bench.score(samples, [PICTURE] * len(samples), Tools(judge=Says(answers)))


def test_a_no_makes_all_that_depends_on_it_no() -> None:
    assert score_picture(CHAIN, {1: False, 2: True, 3: True}) == {1: False, 2: False, 3: False}
    assert score_picture(CHAIN, {1: True, 2: False, 3: True}) == {1: True, 2: False, 3: False}


def test_a_question_before_its_parent_sees_the_answer_as_given() -> None:
    forward = (CHAIN[1], CHAIN[0])
    assert score_picture(forward, {1: True, 2: True}) == {2: True, 1: True}
    late = (Question(1, "global -", "a?", (2,)), Question(2, "global -", "b?", (3,)), Question(3, "global -", "c?"))
    assert score_picture(late, {1: True, 2: True, 3: False}) == {1: True, 2: False, 3: False}


def test_a_question_about_a_parent_that_is_not_there_cannot_be_counted() -> None:
    assert score_picture(CHAIN[1:], {2: True, 3: True}) is None


@given(st.lists(st.booleans(), min_size=3, max_size=3))
def test_dependencies_never_add_a_yes(given_answers: list[bool]) -> None:
    yes = dict(enumerate(given_answers, start=1))
    counted = score_picture(CHAIN, yes)
    assert counted is not None and all(yes[number] or not value for number, value in counted.items())


def test_the_official_rules_lose_the_first_row_and_see_the_last_picture_alone() -> None:
    plain = (Question(1, "entity - whole", "a?"), Question(2, "global -", "b?"))
    pictures = [
        Answered("first", plain, {1: True, 2: False}, heads_table=True),
        Answered("other", plain, {1: False, 2: False}),
        Answered("other", plain, {1: True, 2: True}),
    ]
    official = summarise(pictures, drop_first_row=True, last_picture_only=True)
    assert official.files == {"first": 0.0, "other": 0.5}
    assert official.shares("kind") == {"global": 0.5, "entity": 1.0}
    fixed = summarise(pictures, drop_first_row=False, last_picture_only=False)
    assert fixed.files == {"first": 0.5, "other": 0.5}
    assert fixed.shares("kind") == {"entity": pytest.approx(2 / 3), "global": pytest.approx(1 / 3)}


def test_an_item_that_the_first_row_breaks_is_left_out_officially_and_counted_otherwise() -> None:
    bench = DPGBench()
    answers: dict[str, str | None] = {"a?": "yes", "b?": "yes", "c?": "no"}
    scores = scores_of(bench, [sample("first", heads_table=True), sample("other")], answers)
    metrics = point_estimates(bench.metrics, scores)
    assert all(score.value == pytest.approx(2 / 3) for score in scores)
    summary = summarise(map(answered, scores), drop_first_row=True, last_picture_only=True)
    assert summary.failed == ("first",)
    assert metrics["overall"] == metrics["fixed_overall"] == pytest.approx(200 / 3)


@pytest.mark.parametrize("said", ("Yes", "yes.", " yes", "no", ""))
def test_only_the_exact_word_counts(said: str) -> None:
    (score,) = scores_of(DPGBench(), [sample("x")], {"a?": said, "b?": "yes", "c?": "yes"})
    assert score.value == 0.0


def test_a_picture_with_an_unanswered_question_is_unscored_with_the_reason() -> None:
    answers: dict[str, str | None] = {"a?": "yes", "b?": None, "c?": "yes"}
    (score,) = scores_of(DPGBench(), [sample("x")], answers)
    assert score.value is None and "question 2: no connection" in score.reason


def test_unscored_pictures_leave_their_items_mean_to_the_others() -> None:
    bench = DPGBench()
    samples = [sample("x", 0), sample("x", 1)]
    scores = bench.score(samples, [PICTURE, None], Tools(judge=Says({"a?": "yes", "b?": "yes", "c?": "yes"})))
    assert [score.value for score in scores] == [1.0, None]
    assert point_estimates(bench.metrics, scores)["overall"] == 100.0


def test_a_judge_is_asked_for_yes_or_no_and_the_protocol_says_that_it_is_not_official() -> None:
    bench = DPGBench(answerer="judge")
    judge = Says({f"{letter}? Answer with yes or no.": "yes" for letter in "abc"})
    (score,) = bench.score([sample("x")], [PICTURE], Tools(judge=judge))
    assert score.value == 1.0
    assert all(request.choices == ("yes", "no") for request in judge.asked)
    assert "not official" in bench.protocol and "not official" not in DPGBench().protocol
    assert bench.needs == ("judge",) and DPGBench().needs == ("mplug",)


def test_without_an_answerer_the_message_says_what_is_missing() -> None:
    with pytest.raises(PrerequisiteError, match="nothing was opened that answers"):
        DPGBench().score([sample("x")], [PICTURE], Tools())


def test_a_table_without_a_column_is_named(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("item_id,text\nx,y\n", encoding="utf-8")
    with pytest.raises(PrerequisiteError, match="lacks the columns dependency"):
        read_graphs(tmp_path / "t.csv")


def test_official_files_that_are_not_there_or_of_another_version_are_named(tmp_path: Path) -> None:
    with pytest.raises(PrerequisiteError, match="segros data fetch"):
        DPGBench().prompts("photo", tmp_path)
    (tmp_path / "prompts.json").write_text("{}", encoding="utf-8")
    with pytest.raises(PrerequisiteError, match="expected dbd25cf7"):
        DPGBench().prompts("photo", tmp_path)


def write(root: Path, name: str, size: tuple[int, int] = (16, 16), shade: int = 0) -> None:
    root.mkdir(exist_ok=True)
    Image.new("RGB", size, (shade, 255 - shade, 9)).save(root / name)


def faults(root: Path, **options: Any) -> list[tuple[str, str]]:
    prompts = [record("x"), record("y")]
    options = {"images_per_prompt": 4, **options}
    return [(fault.kind, fault.item) for fault in read_dpgbench_folder(root, prompts=prompts, **options).faults]


def test_grids_and_single_files_of_a_prompt_are_the_same_pictures(tmp_path: Path) -> None:
    grid = Image.new("RGB", (32, 32))
    for item in ("x", "y"):
        for cell in range(4):
            part = Image.new("RGB", (16, 16), (cell * 50, ord(item), 7))
            (tmp_path / "files").mkdir(exist_ok=True)
            part.save(tmp_path / "files" / f"{item}_{cell}.png")
            grid.paste(part, (cell % 2 * 16, cell // 2 * 16))
        (tmp_path / "grids").mkdir(exist_ok=True)
        grid.save(tmp_path / "grids" / f"{item}.png")
    prompts = [record("x"), record("y")]
    found = [read_dpgbench_folder(tmp_path / name, prompts=prompts, images_per_prompt=4) for name in ("grids", "files")]
    pixels = [[cell.read().tobytes() for cell in found[0].paths], [Image.open(p).tobytes() for p in found[1].paths]]
    assert pixels[0] == pixels[1]
    assert [one.faults for one in found] == [(), ()]


def test_every_fault_of_a_folder_is_named_and_unscored(tmp_path: Path) -> None:
    for number in range(4):
        write(tmp_path, f"x_{number}.png", shade=number)
    write(tmp_path, "y_0.png", shade=9)
    write(tmp_path, "y_1.png", shade=9)
    write(tmp_path, "y_2.png", size=(20, 16))
    write(tmp_path, "z_0.png", shade=11)
    (tmp_path / "y_3.png").write_bytes(b"no picture")
    found = read_dpgbench_folder(tmp_path, prompts=[record("x"), record("y"), record("w")], images_per_prompt=4)
    kinds = [(fault.kind, fault.item) for fault in found.faults]
    assert kinds == [
        ("duplicate image", "y_1.png"),
        ("wrong size", "y_2.png"),
        ("unreadable image", "y_3.png"),
        ("missing prompt", "w"),
        ("foreign prompt", "z_0.png"),
    ]
    assert len(found.samples) == 5
    assert len(found.unscored) == 3 + 4 + 1
    assert all(score.value is None and score.reason for score in found.unscored)


def test_a_grid_that_cannot_be_halved_is_of_a_wrong_size(tmp_path: Path) -> None:
    write(tmp_path, "x.png", size=(17, 16))
    write(tmp_path, "y.png", size=(17, 16), shade=1)
    assert faults(tmp_path) == [("wrong size", "x.png"), ("wrong size", "y.png")]


def test_a_grid_whose_cells_are_not_of_the_size_that_is_asked_for_is_of_a_wrong_size(tmp_path: Path) -> None:
    write(tmp_path, "x.png", size=(16, 16))
    write(tmp_path, "y.png", size=(32, 16), shade=1)
    assert faults(tmp_path, side_px=8) == [("wrong size", "y.png")]
    assert faults(tmp_path, side_px=16) == [("wrong size", "x.png"), ("wrong size", "y.png")]


def test_grids_and_single_pictures_are_measured_each_by_their_own_kind(tmp_path: Path) -> None:
    write(tmp_path, "x.png", size=(32, 32))
    for number in range(4):
        write(tmp_path, f"y_{number}.png", size=(16, 16), shade=number)
    assert faults(tmp_path) == [] and faults(tmp_path, side_px=16) == []
    assert [item for _, item in faults(tmp_path, side_px=32)] == ["x.png", *(f"y_{n}.png" for n in range(4))]


def test_too_few_pictures_of_a_prompt_are_counted(tmp_path: Path) -> None:
    write(tmp_path, "x_0.png")
    write(tmp_path, "y_0.png", shade=3)
    found = read_dpgbench_folder(tmp_path, prompts=[record("x"), record("y")], images_per_prompt=3)
    assert [fault.kind for fault in found.faults] == ["too few images"] * 2
    assert len(found.unscored) == 4


def test_names_of_metrics_do_not_depend_on_the_rules_first_in_order() -> None:
    official, fixed = DPGBench(), replace(DPGBench(), rules="fixed")
    assert (
        next(iter(point_estimates(official.metrics, []))) == next(iter(point_estimates(fixed.metrics, []))) == "overall"
    )
    assert len(set(point_estimates(official.metrics, []))) == 2 * (1 + 5 + 13) + 5
