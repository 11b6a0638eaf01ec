"""GenEval's rules against the official script, over recorded detections."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from segros_eval.benchmarks.base import Detection, Sample, Score, Tools
from segros_eval.benchmarks.geneval.benchmark import TAGS, GenEval
from segros_eval.benchmarks.geneval.rules import OBJECT_NAMES, box_iou, relative_position
from segros_eval.statistics.bootstrap import point_estimates


class Recorded:
    """The detections and colour answers of one golden case, in the place of the networks."""

    def __init__(self, case: Mapping[str, Any]) -> None:
        self.detections = [
            Detection(found["class"], tuple(found["box"]), found["score"]) for found in case["detections"]
        ]
        self.named = {float(np.float32(found["score"])): found["color"] for found in case["detections"]}

    def detect(self, images: Sequence[Image.Image]) -> list[list[Detection]]:
        return [self.detections for _ in images]

    def colors(self, image: Image.Image, detections: Sequence[Detection]) -> list[str]:
        return [self.named[detection.score] for detection in detections]


def sample_of(case: Mapping[str, Any]) -> Sample:
    """Return the sample of a case; draws with equal records share a prompt, as in the official summary."""
    record = case["metadata"]
    return Sample(case["id"], json.dumps(record), "image", record["prompt"], metadata=record)


def score_of(case: Mapping[str, Any]) -> Score:
    image = Image.new("RGB", tuple(case["image_size"]))
    (score,) = GenEval(**case["options"]).score([sample_of(case)], [image], Tools(detector=Recorded(case)))
    return score


@pytest.fixture(scope="module")
def folder(golden_set: Callable[[str], Path]) -> Path:
    return golden_set("geneval")


def load(path: Path) -> Any:
    """Read a file of the set; skip where it is absent."""
    return json.loads(text_of(path))


def text_of(path: Path) -> str:
    if not path.is_file():
        pytest.skip(f"the golden set has no {path}")
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module", params=["cases.json", "cases_extra.json"])
def judged(request: pytest.FixtureRequest, folder: Path) -> list[tuple[Mapping[str, Any], Score]]:
    return [(case, score_of(case)) for case in load(folder / request.param)["cases"]]


Judged = Sequence[tuple[Mapping[str, Any], Score]]


def test_every_image_is_judged_as_the_official_script_judges_it(judged: Judged) -> None:
    wrong = [case["id"] for case, score in judged if score.value != float(case["expected"]["correct"])]
    assert judged and wrong == []


def test_every_reason_is_the_official_text(judged: Judged) -> None:
    wrong = {
        case["id"]: (score.reason, case["expected"]["reason"])
        for case, score in judged
        if score.reason != case["expected"]["reason"]
    }
    assert wrong == {}


def test_the_kept_boxes_are_the_official_ones_in_class_order(judged: Judged) -> None:
    wrong = [
        case["id"]
        for case, score in judged
        if list(score.raw["kept"].items()) != list(case["expected"]["kept"].items())
    ]
    assert wrong == []


def test_the_colour_classifier_is_asked_what_the_official_script_asks(judged: Judged) -> None:
    wrong = [case["id"] for case, score in judged if score.raw["colors"] != case["expected"]["color_calls"]]
    assert wrong == []


def test_relations_of_box_pairs_are_the_official_ones(folder: Path) -> None:
    pairs = load(folder / "relations.json")
    wrong = [
        index
        for index, pair in enumerate(pairs)
        if sorted(relative_position(pair["a"], pair["b"], threshold=pair["position_threshold"])) != pair["relations"]
    ]
    assert pairs and wrong == []


def test_overlaps_of_box_pairs_are_the_official_ones(folder: Path) -> None:
    pairs = load(folder / "relations.json")
    found = [box_iou(pair["a"], pair["b"]) for pair in pairs]
    np.testing.assert_allclose(found, [pair["iou"] for pair in pairs], rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def results(folder: Path) -> list[tuple[Mapping[str, Any], Sample, Score]]:
    """Return the official results in order, each with our sample and score of the same case."""
    cases = {case["id"]: case for case in load(folder / "cases.json")["cases"]}
    joined = []
    for line in text_of(folder / "results.jsonl").splitlines():
        row = json.loads(line)
        prompt_id, _, name = row["filename"].split("/")
        case = cases[f"{row['tag']}-{prompt_id}-{int(Path(name).stem)}"]
        joined.append((row, sample_of(case), score_of(case)))
    return joined


Results = Sequence[tuple[Mapping[str, Any], Sample, Score]]


def official_row(sample: Sample, score: Score, filename: str) -> dict[str, Any]:
    """Return the row of a scored image in the official results file."""
    return {
        "filename": filename,
        "tag": sample.metadata["tag"],
        "prompt": sample.prompt,
        "correct": bool(score.value),
        "reason": score.reason,
        "metadata": json.dumps(dict(sample.metadata)),
        "details": json.dumps(score.raw["kept"]),
    }


def official_summary(scores: Sequence[Score]) -> str:
    """Return the text that the official summary prints for scored images, in the order of its results file."""
    by_tag: dict[str, list[float]] = {}
    by_prompt: dict[str, list[float]] = {}
    for score in scores:
        if score.value is not None:
            by_tag.setdefault(score.group, []).append(score.value)
            by_prompt.setdefault(score.cluster_id, []).append(score.value)
    values = [value for tag in by_tag.values() for value in tag]
    shares = {tag: sum(right) / len(right) for tag, right in by_tag.items()}
    lines = [
        "Summary",
        "=======",
        f"Total images: {len(values)}",
        f"Total prompts: {len(by_prompt)}",
        f"% correct images: {sum(values) / len(values):.2%}",
        f"% correct prompts: {sum(map(max, by_prompt.values())) / len(by_prompt):.2%}",
        "",
        "Task breakdown",
        "==============",
        *(f"{tag:<16} = {shares[tag]:.2%} ({sum(right):.0f} / {len(right)})" for tag, right in by_tag.items()),
        "",
        f"Overall score (avg. over tasks): {sum(shares.values()) / len(shares):.5f}",
    ]
    return "\n".join(lines) + "\n"


def test_rows_for_the_official_summary_are_the_official_ones(results: Results) -> None:
    wrong = [row["filename"] for row, sample, score in results if official_row(sample, score, row["filename"]) != row]
    assert results and wrong == []


def test_the_summary_is_the_official_text_to_the_character(results: Results, folder: Path) -> None:
    scores = [score for _, _, score in results]
    assert official_summary(scores) == load(folder / "summary.json")["stdout"]


def test_aggregates_are_the_official_numbers_in_percent(results: Results, folder: Path) -> None:
    expected = load(folder / "summary.json")
    metrics = point_estimates(GenEval().metrics, [score for _, _, score in results])
    assert next(iter(metrics)) == "overall"
    named = {name: expected[name] for name in ("image_accuracy", "prompt_accuracy")} | expected["task_scores"]
    if set(expected["task_scores"]) == set(TAGS):
        named["overall"] = expected["overall"]
    measured = {name: value for name, value in metrics.items() if value is not None}
    assert measured == pytest.approx({name: 100 * value for name, value in named.items()}, rel=1e-12)


def test_every_detected_class_of_the_goldens_is_known(judged: Judged) -> None:
    assert {found["class"] for case, _ in judged for found in case["detections"]} <= set(OBJECT_NAMES)
