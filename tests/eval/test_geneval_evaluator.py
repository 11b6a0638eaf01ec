"""GenEval as an evaluator: what it asks, what it leaves unscored, how it sums up."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from segros_eval.benchmarks.base import Detection, Evaluator, Sample, Score, Tools
from segros_eval.benchmarks.geneval.benchmark import METADATA_FILE, TAGS, GenEval
from segros_eval.benchmarks.geneval.rules import box_iou, evaluate, keep, relative_position
from segros_eval.shapes.reader import SceneReader
from segros_eval.statistics.bootstrap import interval_estimates, point_estimates
from segros_train.data.shapes.captions import caption
from segros_train.data.shapes.world import render, sample_scene
from segros_train.errors import PrerequisiteError
from segros_train.files import file_sha256

CIRCLE = {"tag": "single_object", "include": [{"class": "circle", "count": 1}], "prompt": "a photo of a circle"}


def make_score(tag: str, prompt: str, draw: int, value: float | None) -> Score:
    status = "unscored" if value is None else "scored"
    return Score(f"{prompt}/{draw:05d}", prompt, None, None, status, value, group=tag)


def full_scores(value: float | None = 1.0) -> list[Score]:
    """Return scores of two prompts per tag with two images each."""
    return [make_score(tag, f"{tag}-{n}", draw, value) for tag in TAGS for n in range(2) for draw in range(2)]


@pytest.fixture()
def official(tmp_path: Path) -> tuple[GenEval, Path]:
    """Return an evaluator that knows the digest of a small file of prompts, and the file's folder."""
    path = tmp_path / METADATA_FILE
    path.write_text("".join(json.dumps(CIRCLE | {"prompt": f"prompt {n}"}) + "\n" for n in range(3)))
    return GenEval(metadata_sha256=file_sha256(path), images_per_prompt=2), tmp_path


def test_geneval_keeps_the_contract_of_an_evaluator() -> None:
    assert isinstance(GenEval(), Evaluator)


def test_declaring_geneval_imports_neither_torch_nor_numpy() -> None:
    code = "import sys, segros_eval.benchmarks.geneval.benchmark; sys.exit(bool({'torch', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_departure_from_the_official_rules_shows_in_the_protocol() -> None:
    assert GenEval().protocol == GenEval(images_per_prompt=12).protocol == "geneval@af4902f"
    assert GenEval(max_overlap=0.5).protocol == "geneval@af4902f max_overlap=0.5"


def test_an_option_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="images_per_prompt must be at least 1"):
        GenEval(images_per_prompt=0)


def test_prompts_are_read_from_the_official_file(official: tuple[GenEval, Path]) -> None:
    evaluator, folder = official
    samples = list(evaluator.samples("photo", folder, [0]))
    assert [sample.item_id for sample in samples[:3]] == ["00000/00000", "00000/00001", "00001/00000"]
    assert [sample.prompt for sample in samples[::2]] == ["prompt 0", "prompt 1", "prompt 2"]


def test_a_changed_prompt_file_is_refused_with_both_digests(official: tuple[GenEval, Path]) -> None:
    evaluator, folder = official
    with (folder / METADATA_FILE).open("a") as stream:
        stream.write("\n")
    with pytest.raises(PrerequisiteError, match=evaluator.metadata_sha256):
        list(evaluator.samples("photo", folder, [0]))


@pytest.mark.parametrize("data", [None, Path("nowhere")])
def test_a_missing_prompt_file_is_named(data: Path | None) -> None:
    with pytest.raises(PrerequisiteError, match="GenEval's prompts are missing"):
        list(GenEval().samples("photo", data, [0]))


def test_draws_of_one_prompt_have_distinct_seeds_over_all_seeds_of_a_run() -> None:
    samples = list(GenEval(images_per_prompt=3, shapes_prompts_per_tag=2).samples("shapes", None, [0, 1, 5]))
    assert len({(sample.prompt, sample.seed) for sample in samples}) == len(samples) == 12 * 3 * 3
    assert len({sample.item_id for sample in samples}) == len(samples)


def test_more_images_per_prompt_keep_the_draws_of_seed_zero() -> None:
    few, many = (
        {(sample.item_id, sample.seed) for sample in GenEval(images_per_prompt=n).samples("shapes", None, [0])}
        for n in (4, 12)
    )
    assert few < many


def test_the_embedded_world_covers_all_six_tags() -> None:
    samples = GenEval(shapes_prompts_per_tag=3, images_per_prompt=1).samples("shapes", None, [0])
    assert [sample.metadata["tag"] for sample in samples] == [tag for tag in TAGS for _ in range(3)]


def test_images_of_the_embedded_world_that_show_their_prompt_are_correct_and_others_are_not() -> None:
    records = {record["prompt"]: record for record in GenEval(shapes_prompts_per_tag=10**6).prompts("shapes", None)}
    scenes = [sample_scene(77, index, tag=tag) for tag in TAGS for index in range(10)]
    samples = [
        Sample(f"{n:05d}/00000", f"{n:05d}", "image", caption(scene), metadata=records[caption(scene)])
        for n, scene in enumerate(scenes)
    ]
    images = [render(scene) for scene in scenes]
    tools = Tools(detector=SceneReader())
    shown = GenEval().score(samples, images, tools)
    assert np.mean([score.value for score in shown]) >= 0.95
    shifted = GenEval().score(samples, images[-10:] + images[:-10], tools)
    assert np.mean([score.value for score in shifted]) <= 0.3


def test_without_a_detector_the_message_says_what_is_missing() -> None:
    sample = Sample("00000/00000", "00000", "image", "a photo of a circle", metadata=CIRCLE)
    with pytest.raises(PrerequisiteError, match="detector"):
        GenEval().score([sample], [Image.new("RGB", (8, 8))], Tools())


class Blind:
    """A detector that finds nothing and counts what it is shown."""

    def __init__(self) -> None:
        self.num_seen = 0

    def detect(self, images: Sequence[Image.Image]) -> list[list[Detection]]:
        self.num_seen += len(images)
        return [[] for _ in images]

    def colors(self, image: Image.Image, detections: Sequence[Detection]) -> list[str]:
        return []


def test_missing_and_unreadable_images_are_unscored_and_never_reach_the_detector(tmp_path: Path) -> None:
    good, torn = tmp_path / "good.png", tmp_path / "torn.png"
    Image.effect_noise((64, 64), 50).convert("RGB").save(good)
    torn.write_bytes(good.read_bytes()[:-300])
    lazy = Image.open(torn)
    responses: list[Any] = [None, torn, lazy, tmp_path / "absent.png", good, Image.new("L", (8, 8))]
    samples = [Sample(f"00000/{n:05d}", "00000", "image", CIRCLE["prompt"], metadata=CIRCLE) for n in range(6)]
    detector = Blind()
    with lazy:
        scores = GenEval().score(samples, responses, Tools(detector=detector))
    assert [score.status for score in scores] == ["unscored"] * 4 + ["scored"] * 2
    assert [score.value for score in scores] == [None] * 4 + [0.0] * 2
    assert all(score.reason and score.group == "single_object" for score in scores)
    assert detector.num_seen == 2


def test_a_batch_of_responses_that_is_too_short_is_refused() -> None:
    sample = Sample("00000/00000", "00000", "image", CIRCLE["prompt"], metadata=CIRCLE)
    with pytest.raises(ValueError):
        GenEval().score([sample, sample], [None], Tools(detector=Blind()))


def test_the_overall_is_the_mean_of_the_tags_and_not_of_the_images() -> None:
    scores = full_scores(0.0) + [make_score("counting", f"more-{n}", 0, 1.0) for n in range(12)]
    metrics = point_estimates(GenEval().metrics, scores)
    assert metrics["counting"] == 75.0
    assert metrics["overall"] == 12.5
    assert metrics["image_accuracy"] == pytest.approx(100 * 12 / 36)
    assert list(metrics) == ["overall", *TAGS, "image_accuracy", "prompt_accuracy"]


def test_an_unscored_image_enters_no_mean() -> None:
    scores = full_scores()
    scores[0] = replace(scores[0], status="unscored", value=None)
    assert set(point_estimates(GenEval().metrics, scores).values()) == {100.0}


def test_a_prompt_with_an_unscored_image_is_left_out_of_prompt_accuracy() -> None:
    scores = [make_score("colors", "a", 0, 1.0), make_score("colors", "b", 0, 0.0), make_score("colors", "b", 1, None)]
    assert point_estimates(GenEval().metrics, scores)["prompt_accuracy"] == 100.0


def test_a_tag_without_a_scored_image_leaves_no_overall_and_no_interval_of_it() -> None:
    scores = [score for score in full_scores() if score.group != "position"]
    scores += [make_score("position", "p", 0, None)]
    metrics, intervals = point_estimates(GenEval().metrics, scores), interval_estimates(GenEval().metrics, scores)
    assert metrics["position"] is None and metrics["overall"] is None
    assert metrics["counting"] == 100.0
    assert set(intervals) == {name for name, value in metrics.items() if value is not None}


def test_every_metric_lies_in_its_interval() -> None:
    rng = np.random.default_rng(5)
    scores = [
        make_score(tag, f"{tag}-{n}", draw, float(rng.random() < 0.2 + 0.1 * place))
        for place, tag in enumerate(TAGS)
        for n in range(20)
        for draw in range(4)
    ]
    metrics, intervals = point_estimates(GenEval().metrics, scores), interval_estimates(GenEval().metrics, scores)
    assert list(intervals) == list(metrics)
    for name, value in metrics.items():
        assert value is not None
        assert intervals[name].low < value < intervals[name].high
    assert intervals["overall"].estimator == "prompt-clustered bootstrap, 10000 replicates"


def test_nothing_scored_gives_no_metric_and_no_interval() -> None:
    assert set(point_estimates(GenEval().metrics, []).values()) == {None}
    assert interval_estimates(GenEval().metrics, full_scores(None)) == {}


BOX = st.lists(st.integers(0, 64), min_size=4, max_size=4).map(
    lambda edges: (float(min(edges[:2])), float(min(edges[2:])), float(max(edges[:2]) + 1), float(max(edges[2:]) + 1))
)
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


@given(BOX, BOX)
@settings(max_examples=100, deadline=None)
def test_a_relation_seen_from_the_other_box_is_its_opposite(a: Any, b: Any) -> None:
    seen = relative_position(a, b, threshold=0.1)
    assert {OPPOSITE[name] for name in seen} == relative_position(b, a, threshold=0.1)


@given(BOX, BOX)
@settings(max_examples=100, deadline=None)
def test_overlap_is_symmetric_and_whole_for_equal_boxes(a: Any, b: Any) -> None:
    assert box_iou(a, b) == box_iou(b, a)
    assert 0.0 <= box_iou(a, b) <= 1.0 == box_iou(a, a)


@given(st.permutations(range(6)))
@settings(max_examples=30, deadline=None)
def test_the_order_of_detections_changes_nothing(order: Sequence[int]) -> None:
    found = [Detection("dog" if n % 2 else "cat", (8.0 * n, 0.0, 8.0 * n + 20, 20.0), 0.4 + 0.1 * n) for n in range(6)]
    options = {"threshold": 0.3, "max_objects": 2, "max_overlap": 0.5}
    assert keep([found[n] for n in order], **options) == keep(found, **options)


def test_a_score_equal_to_the_threshold_in_float32_is_not_kept() -> None:
    at = Detection("dog", (0.0, 0.0, 9.0, 9.0), 0.3)
    above = replace(at, score=float(np.nextafter(np.float32(0.3), np.float32(1))))
    assert not keep([at], threshold=0.3, max_objects=16, max_overlap=1.0)
    assert keep([above], threshold=0.3, max_objects=16, max_overlap=1.0)


def test_a_failed_clause_is_no_target_for_a_later_one() -> None:
    cat = Detection("cat", (0.0, 0.0, 10.0, 10.0), 0.9)
    include = [{"class": "dog", "count": 1}, {"class": "cat", "count": 1, "position": ["left of", 0]}]
    verdict = evaluate({"include": include}, {"cat": [cat]}, lambda found: [], position_threshold=0.1)
    assert verdict.reason == "expected dog>=1, found 0\nno target for cat to be left of"
