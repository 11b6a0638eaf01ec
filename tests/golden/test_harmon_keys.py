"""The full-size models against the key lists of the original ones."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from segros_eval.pipeline.catalog import load_catalog
from segros_train.backbones.harmon.model import HarmonModel

TASKS = Path(__file__).parents[2] / "tasks"


@pytest.mark.parametrize("name", ["harmon-0.5b", "harmon-1.5b"])
def test_the_declared_model_has_the_recorded_keys_and_shapes(golden_set: Callable[[str], Path], name: str) -> None:
    lines = golden_set(f"{name}.keys.txt").read_text(encoding="utf-8").splitlines()
    found = [re.fullmatch(r"(\S+) \[(.*)\] \S+", line) for line in lines if line and not line.startswith("#")]
    recorded = {match[1]: tuple(map(int, filter(None, match[2].split(", ")))) for match in found}
    card = load_catalog(TASKS).backbones[name]
    with torch.device("meta"):
        state = HarmonModel(card.config).state_dict()
    assert {key: tuple(value.shape) for key, value in state.items()} == recorded
