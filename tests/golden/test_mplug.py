"""mPLUG against modelscope's own classes, with the same small random weights."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from bounds import close
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from segros_eval.benchmarks.base import JudgeRequest
from segros_eval.benchmarks.dpgbench.mplug.answerer import Mplug, beam_search, config_of, from_published
from segros_eval.benchmarks.dpgbench.mplug.layers import MplugNetwork


@pytest.fixture(scope="module")
def folder(golden_set: Callable[[str], Path]) -> Path:
    return golden_set("mplug")


@pytest.fixture(scope="module")
def cases(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "cases.json").read_text(encoding="utf-8"))["cases"]


@pytest.fixture(scope="module")
def tensors(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "tensors.safetensors")


@pytest.fixture(scope="module")
def network(folder: Path) -> MplugNetwork:
    network = MplugNetwork(config_of(folder)).eval().requires_grad_(False)
    network.load_state_dict(from_published(load_file(folder / "weights.safetensors")))
    return network


@pytest.fixture(scope="module")
def answerer(network: MplugNetwork, folder: Path) -> Mplug:
    return Mplug(network, folder / "vocab.txt")


def near(found: Tensor, expected: Tensor) -> None:
    close(found, expected)


def test_pictures_and_questions_are_prepared_alike(
    answerer: Mplug, cases: list[dict[str, Any]], folder: Path, tensors: Mapping[str, Tensor]
) -> None:
    for key, case in enumerate(cases):
        image = Image.open(folder / f"image_{case['image']}.png").convert("RGB")
        assert torch.equal(answerer._transform(image)[None], tensors[f"{key}.pixels"])
        tokens, valid = answerer._tokens([case["question"]])
        assert torch.equal(tokens, tensors[f"{key}.tokens"])
        assert torch.equal(valid.long(), tensors[f"{key}.valid"])


def test_states_and_logits_are_equal(
    network: MplugNetwork, cases: list[dict[str, Any]], tensors: Mapping[str, Tensor]
) -> None:
    for key in range(len(cases)):
        image = network.encode_image(tensors[f"{key}.pixels"])
        near(image, tensors[f"{key}.image"])
        states, there = network.encode(image, tensors[f"{key}.tokens"], tensors[f"{key}.valid"].bool())
        # Where there is no token, nothing reads the state.
        near(states * there[..., None], tensors[f"{key}.states"] * there[..., None])
        beginning = torch.tensor([[[101, 110, 111]]])
        near(network.next_logits(beginning, network.memory(states), there)[:, 0], tensors[f"{key}.logits"])


def test_answers_are_equal_token_by_token(
    network: MplugNetwork, answerer: Mplug, cases: list[dict[str, Any]], folder: Path, tensors: Mapping[str, Tensor]
) -> None:
    assert len({case["answer"] for case in cases}) > 2, "the set tells answers apart"
    for key, case in enumerate(cases):
        image = network.encode_image(tensors[f"{key}.pixels"])
        states, there = network.encode(image, tensors[f"{key}.tokens"], tensors[f"{key}.valid"].bool())
        assert beam_search(network, network.memory(states), there) == [case["ids"]]
        picture = Image.open(folder / f"image_{case['image']}.png").convert("RGB")
        assert answerer.answer(picture, [case["question"]]) == [case["answer"]]


def test_questions_of_a_picture_together_are_answered_as_alone(
    answerer: Mplug, cases: list[dict[str, Any]], folder: Path
) -> None:
    requests = [JudgeRequest(folder / f"image_{case['image']}.png", (case["question"],), "dpg-mplug") for case in cases]
    assert [reply.text for reply in answerer.ask(requests)] == [case["answer"] for case in cases]


def test_a_picture_that_cannot_be_read_is_not_answered(answerer: Mplug, tmp_path: Path) -> None:
    (reply,) = answerer.ask([JudgeRequest(tmp_path / "none.png", ("Is it?",), "dpg-mplug")])
    assert reply.text is None and "does not exist" in reply.reason
