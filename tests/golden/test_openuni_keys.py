"""The full-size models against the key lists of the original ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from segros_eval.pipeline.catalog import load_catalog
from segros_train.backbones.openuni.model import OpenUniModel
from segros_train.backbones.openuni.state_dict import our_names, upstream_names

TASKS = Path(__file__).parents[2] / "tasks"


@pytest.mark.parametrize("name", ["openuni-1.6b", "openuni-3.6b"])
def test_the_declared_model_has_the_recorded_keys_and_shapes(golden_set: Callable[[str], Path], name: str) -> None:
    lines = golden_set(f"{name}.keys.txt").read_text(encoding="utf-8").splitlines()
    recorded = {
        key: tuple(map(int, shape.split("x"))) for key, shape, _ in map(str.split, filter(None, lines)) if key != "#"
    }
    card = load_catalog(TASKS).backbones[name]
    with torch.device("meta"):
        state = OpenUniModel(card.config).state_dict()
    upstream = upstream_names(state)
    assert {key: tuple(value.shape) for key, value in upstream.items()} == recorded
    again = {key: tuple(value.shape) for key, value in our_names(upstream).items()}
    assert again == {key: tuple(value.shape) for key, value in state.items()}
