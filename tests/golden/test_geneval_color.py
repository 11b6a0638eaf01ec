"""GenEval's colour classifier against the official one, with the same small CLIP."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import open_clip
import pytest
from bounds import close
from golden_masks import decoded
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from segros_eval.benchmarks.base import Detection
from segros_eval.benchmarks.geneval.detector.colors import TEMPLATES, ColorClassifier
from segros_eval.benchmarks.geneval.rules import COLORS


@pytest.fixture(scope="module")
def folder(golden_set: Callable[[str], Path]) -> Path:
    return golden_set("geneval_color")


@pytest.fixture(scope="module")
def recorded(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "cases.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def tensors(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "tensors.safetensors")


@pytest.fixture(scope="module")
def clip(folder: Path, recorded: Mapping[str, Any]) -> Any:
    sizes = recorded["clip"]
    model = open_clip.CLIP(
        embed_dim=sizes["embed_dim"],
        vision_cfg=open_clip.CLIPVisionCfg(**sizes["vision_cfg"]),
        text_cfg=open_clip.CLIPTextCfg(**sizes["text_cfg"]),
        quick_gelu=recorded["quick_gelu"],
    )
    model.load_state_dict(load_file(folder / "weights.safetensors"))
    return model.eval()


Case = tuple[int, Mapping[str, Any], ColorClassifier, Image.Image, list[Detection]]


@pytest.fixture(scope="module")
def opened(folder: Path, recorded: Mapping[str, Any], clip: Any) -> list[Case]:
    """Return each case with its classifier, picture and objects."""
    whole = []
    for index, case in enumerate(recorded["cases"]):
        options = case["options"]
        classifier = ColorClassifier(
            clip, background=options.get("bgcolor", "#999"), crop=options.get("crop", "1") != "0"
        )
        objects = [
            Detection(case["classname"], tuple(one["box"]), 1.0, None if one["mask"] is None else decoded(one["mask"]))
            for one in case["objects"]
        ]
        whole.append((index, case, classifier, Image.open(folder / case["image"]).convert("RGB"), objects))
    return whole


def test_colours_and_templates_are_the_official_ones(recorded: Mapping[str, Any]) -> None:
    assert list(COLORS) == recorded["colors"]
    ours = [template.replace("{color}", "{c}").replace("{label}", "{classname}") for template in TEMPLATES]
    assert ours == recorded["templates"]


def test_the_columns_of_a_class_are_the_official_ones(opened: list[Case], tensors: Mapping[str, Tensor]) -> None:
    for _, case, classifier, _, _ in opened:
        expected = tensors[f"classifier.{case['classname']}"]
        close(classifier.columns(case["classname"]), expected)


def test_crops_are_preprocessed_to_the_same_pixels(opened: list[Case], tensors: Mapping[str, Tensor]) -> None:
    for index, _, classifier, image, objects in opened:
        for place, pixels in enumerate(classifier.pixels(image, objects)):
            close(pixels[:, ::4, ::4], tensors[f"{index}.{place}.pixels_s4"])


def test_logits_and_names_are_the_official_ones(opened: list[Case], tensors: Mapping[str, Tensor]) -> None:
    for index, case, classifier, image, objects in opened:
        logits = classifier.logits(image, objects)
        close(logits, tensors[f"{index}.logits"])
        assert [COLORS[int(place)] for place in logits.argmax(1)] == case["colors"]


def test_crops_of_several_images_together_give_what_they_give_alone(opened: list[Case]) -> None:
    classifier = opened[0][2]
    groups = [(image, objects) for _, case, _, image, objects in opened if not case["options"]]
    together = classifier.grouped_logits(groups)
    for (image, objects), logits in zip(groups, together, strict=True):
        close(logits, classifier.logits(image, objects))
