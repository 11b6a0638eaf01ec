"""Stores: what was written is found again, and what is not what was written is not taken for it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from segros_eval.benchmarks.base import Interval, Result, Sample, Score
from segros_eval.benchmarks.images import UnreadableImageError, read_image
from segros_eval.pipeline.store import (
    AnswerStore,
    ImageStore,
    read_result,
    read_scores,
    result_from_json,
    result_to_json,
    write_result,
    write_scores,
)
from segros_train.errors import PrerequisiteError
from segros_train.types import GenerationSettings

SETTINGS = GenerationSettings(num_steps=8)


def sample(n: int = 0, *, seed: int = 0) -> Sample:
    return Sample(f"{n:05d}/{seed:05d}", f"{n:05d}", "image", f"a photo of {n} cats", seed=seed)


def noise(seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (24, 16, 3), dtype=np.uint8))


def open_store(folder: Path, *, backbone_key: str = "weights", **changes: object) -> ImageStore:
    return ImageStore(folder, settings=replace(SETTINGS, **changes), backbone_key=backbone_key)


def test_an_image_is_found_again_pixel_for_pixel_after_a_restart(tmp_path: Path) -> None:
    open_store(tmp_path).put(sample(), noise())
    again = open_store(tmp_path)
    assert again.has(sample())
    assert np.array_equal(np.asarray(read_image(again.path(sample()))), np.asarray(noise()))


def test_the_manifest_says_what_each_image_is(tmp_path: Path) -> None:
    path = open_store(tmp_path).put(sample(2, seed=5), noise())
    (record,) = [json.loads(line) for line in (tmp_path / "manifest.jsonl").read_text().splitlines()]
    assert (record["file"], record["prompt"], record["seed"]) == (path.name, "a photo of 2 cats", 5)
    assert record["conditions"]["num_steps"] == 8
    assert len(record["sha256"]) == 64


def test_evaluators_that_ask_for_the_same_draw_share_its_image(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.put(sample(), noise())
    other = replace(sample(), item_id="other/1", cluster_id="other", metadata={"tag": "colors"})
    assert store.missing([other, sample(), sample(1)]) == [sample(1)]


@pytest.mark.parametrize(
    "changes", [{"num_steps": 9}, {"cfg_scale": 2.0}, {"options": {"a": 1}}, {"backbone_key": "b"}]
)
def test_other_settings_or_weights_ask_for_other_images(tmp_path: Path, changes: dict) -> None:
    store = open_store(tmp_path)
    store.put(sample(), noise())
    assert open_store(tmp_path, **changes).missing([sample()]) == [sample()]
    assert store.missing([replace(sample(), seed=1), replace(sample(), prompt="a dog")])[0].seed == 1


def test_the_batch_size_asks_for_the_same_images(tmp_path: Path) -> None:
    open_store(tmp_path).put(sample(), noise())
    assert open_store(tmp_path, batch_size=1).missing([sample()]) == []


def test_one_image_is_asked_for_once(tmp_path: Path) -> None:
    assert len(open_store(tmp_path).missing([sample(), replace(sample(), item_id="again")])) == 1


def test_a_truncated_image_is_missing_and_can_be_drawn_again(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    path = store.put(sample(), noise())
    path.write_bytes(path.read_bytes()[:-20])
    assert not store.has(sample())
    assert store.missing([sample()]) == [sample()]
    store.put(sample(), noise())
    assert store.missing([sample()]) == []


def test_an_image_written_just_before_a_crash_is_drawn_again(tmp_path: Path) -> None:
    path = open_store(tmp_path).put(sample(), noise())
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_text(manifest.read_text()[:-30])
    store = open_store(tmp_path)
    assert store.missing([sample()]) == [sample()]
    store.put(sample(), noise())
    assert open_store(tmp_path).path(sample()) == path
    assert open_store(tmp_path).has(sample())


def test_a_second_process_sees_what_the_first_has_drawn_after_a_refresh(tmp_path: Path) -> None:
    first, second = open_store(tmp_path), open_store(tmp_path)
    first.put(sample(), noise())
    assert not second.has(sample())
    second.refresh()
    assert second.has(sample())


def test_a_folder_that_cannot_be_made_is_a_prerequisite(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PrerequisiteError, match="Cannot write"):
        open_store(tmp_path / "file" / "images").put(sample(), noise())


def test_an_exif_rotation_and_transparency_are_resolved(tmp_path: Path) -> None:
    path = tmp_path / "turned.png"
    exif = Image.Exif()
    exif[0x0112] = 6
    noise().convert("RGBA").save(path, exif=exif)
    image = read_image(path)
    assert (image.mode, image.size) == ("RGB", (24, 16))


@given(st.binary(max_size=200), st.integers(0, 400))
@settings(max_examples=150, deadline=None)
def test_no_damage_to_a_file_raises_anything_but_unreadable(
    tmp_path_factory: pytest.TempPathFactory, junk: bytes, at: int
) -> None:
    path = tmp_path_factory.mktemp("images") / "image.png"
    noise().save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:at] + junk + whole[at + len(junk) :])
    try:
        assert read_image(path).mode == "RGB"
    except UnreadableImageError as error:
        assert str(path) in str(error)


@pytest.mark.parametrize("content", [b"", b"GIF", b"not an image at all", b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_image_is_unreadable(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "image.png"
    path.write_bytes(content)
    with pytest.raises(UnreadableImageError):
        read_image(path)


def question(n: int) -> Sample:
    return Sample(f"q{n}", "picture", "answer", f"Is there a cat in picture {n}?")


def test_answers_are_found_again_after_a_torn_last_line(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    store = AnswerStore(path, backbone_key="weights")
    store.put(question(0), "Yes")
    store.put(question(1), [-0.1, -2.5])
    path.write_text(path.read_text()[:-5])
    again = AnswerStore(path, backbone_key="weights")
    assert again.missing([question(0), question(1)]) == [question(1)]
    again.put(question(1), "No")
    assert [AnswerStore(path, backbone_key="weights").get(question(n)) for n in range(3)] == ["Yes", "No", None]


def test_an_empty_answer_is_an_answer(tmp_path: Path) -> None:
    store = AnswerStore(tmp_path / "answers.jsonl", backbone_key="weights")
    store.put(question(0), "")
    assert store.missing([question(0)]) == []
    assert store.get(question(0)) == ""


def test_other_weights_settings_or_words_ask_again(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    AnswerStore(path, backbone_key="weights", settings={"max_new_tokens": 8}).put(question(0), "Yes")
    for store in (
        AnswerStore(path, backbone_key="others", settings={"max_new_tokens": 8}),
        AnswerStore(path, backbone_key="weights", settings={"max_new_tokens": 9}),
    ):
        assert store.missing([question(0)]) == [question(0)]
    same = AnswerStore(path, backbone_key="weights", settings={"max_new_tokens": 8})
    assert same.missing([question(0), replace(question(0), prompt="Is it?")])[0].prompt == "Is it?"


RESULT = Result(
    method="segros",
    backbone="harmon-tiny",
    evaluator="geneval",
    metrics={"overall": 61.5, "position": None},
    intervals={"overall": Interval(58.0, 65.0, "prompt-clustered bootstrap, 10000 replicates")},
    num_samples=40,
    num_unparsed=0,
    num_unscored=2,
    seeds=(0, 1),
    protocol="geneval@af4902f",
    world="shapes",
    key="abc",
    provenance={"versions": {"torch": "2.11"}},
)


def test_a_result_survives_its_file(tmp_path: Path) -> None:
    write_result(tmp_path / "result.json", RESULT)
    assert read_result(tmp_path / "result.json") == RESULT


def test_a_result_keeps_its_headline_first(tmp_path: Path) -> None:
    write_result(tmp_path / "result.json", replace(RESULT, metrics={"overall": 1.0, "counting": 2.0}))
    assert read_result(tmp_path / "result.json").headline == "overall"


def test_fields_that_this_version_does_not_know_are_left_out() -> None:
    assert result_from_json({**result_to_json(RESULT), "colour": "red"}) == RESULT


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"format": 99}', '{"format": 1, "method": "sft"}', '{"format": []}']
)
def test_a_damaged_or_foreign_result_is_a_prerequisite(tmp_path: Path, text: str) -> None:
    (tmp_path / "result.json").write_text(text)
    with pytest.raises(PrerequisiteError, match="is no result"):
        read_result(tmp_path / "result.json")


def test_a_missing_result_is_a_prerequisite(tmp_path: Path) -> None:
    with pytest.raises(PrerequisiteError, match="Cannot read"):
        read_result(tmp_path / "result.json")


def test_a_number_that_is_not_finite_is_never_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        write_result(tmp_path / "result.json", replace(RESULT, metrics={"overall": float("nan")}))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_is_not_finite_is_no_score(value: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        Score("a/0", "a", None, None, "scored", value)


SCORES = [
    Score("a/0", "a", {"kept": {"cat": [[0.0, 0.0, 9.0, 9.0, 0.5]]}}, True, "scored", 1.0, group="colors"),
    Score("a/1", "a", None, None, "unscored", None, reason="no image was drawn", group="colors"),
]


def test_scores_survive_their_file(tmp_path: Path) -> None:
    write_scores(tmp_path / "scores.jsonl", SCORES)
    assert read_scores(tmp_path / "scores.jsonl") == SCORES


@pytest.mark.parametrize("line", ['{"item_id": "a"}', "3", json.dumps({**vars(SCORES[0]), "value": None})])
def test_lines_that_are_no_scores_are_a_prerequisite(tmp_path: Path, line: str) -> None:
    (tmp_path / "scores.jsonl").write_text(line + "\n")
    with pytest.raises(PrerequisiteError, match="no file of scores"):
        read_scores(tmp_path / "scores.jsonl")


def test_missing_scores_are_a_prerequisite(tmp_path: Path) -> None:
    with pytest.raises(PrerequisiteError, match="does not exist"):
        read_scores(tmp_path / "scores.jsonl")
