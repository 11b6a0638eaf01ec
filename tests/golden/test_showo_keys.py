"""The full-size Show-o models against the key lists of the original ones."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from segros_eval.pipeline.catalog import load_catalog
from segros_train.backbones.showo.model import ShowoModel
from segros_train.backbones.showo.state_dict import published_names

TASKS = Path(__file__).parents[2] / "tasks"


def recorded(path: Path) -> dict[str, tuple[int, ...]]:
    """Read a list of keys with shapes; comments may follow a `#` of their own."""
    lines = path.read_text(encoding="utf-8").splitlines()
    found = (re.match(r"(\S+) \[(.*?)\]", line.lstrip("# ")) for line in lines)
    return {match[1]: tuple(map(int, filter(None, match[2].split(", ")))) for match in found if match}


@pytest.mark.parametrize("name", ["show-o-256", "show-o-512"])
def test_the_declared_model_has_the_recorded_keys_and_shapes(golden_set: Callable[[str], Path], name: str) -> None:
    expected = recorded(golden_set("showo-lm.keys.txt")) | recorded(golden_set("magvitv2.keys.txt"))
    with torch.device("meta"):
        state = published_names(ShowoModel(load_catalog(TASKS).backbones[name].config).state_dict())
    found = {key: tuple(value.shape) for key, value in state.items() if not key.startswith("vision_model.")}
    assert found == expected
    assert sum(key.startswith("vision_model.encoder.layers.") for key in state) == 24 * 16
