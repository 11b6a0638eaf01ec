"""Every backbone trains with every method of the paper at Table 7's micro-batch on one card of 80 GB, counted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from full_size import NAMES, catalog, empty_backbone

from segros_train.errors import PrerequisiteError
from segros_train.training.memory import choose_checkpointing, training_peak

CARD = int(79.2 * 2**30)
"""What an H100 with 80 GB lets a process have."""
LIMIT = 74 * 2**30
METHODS = ("sft", "reca", "segros")


@pytest.mark.parametrize("name", NAMES)
def test_a_full_size_backbone_trains_with_every_method_on_one_card(
    name: str, tmp_path: Path, record_property: pytest.RecordProperty
) -> None:
    backbone = empty_backbone(name, tmp_path)
    recipe = catalog().recipes[catalog().backbones[name].recipe]
    peaks = {}
    for method in METHODS:
        chosen = catalog().methods[method].method
        assert chosen is not None
        choice = choose_checkpointing(backbone, chosen, recipe, capacity=CARD)
        peaks[method] = choice.peak
        record_property(method, f"{choice.checkpointing}: {choice.peak / 2**30:.1f} GiB")
    assert max(peaks.values()) <= LIMIT, {method: f"{peak / 2**30:.1f} GiB" for method, peak in peaks.items()}


def test_recomputing_more_takes_less_memory(tmp_path: Path) -> None:
    backbone = empty_backbone("harmon-0.5b", tmp_path)
    recipe = replace(catalog().recipes["harmon-0.5b"], batch_size=4)
    method = catalog().methods["sft"].method
    assert method is not None
    none, blocks, everything = (
        training_peak(backbone, method, replace(recipe, checkpointing=checkpointing))
        for checkpointing in ("none", "blocks", "all")
    )
    assert none > blocks > everything


def test_a_device_that_is_too_small_is_refused_with_what_to_change(tmp_path: Path) -> None:
    backbone = empty_backbone("show-o-256", tmp_path)
    method = catalog().methods["sft"].method
    assert method is not None
    with pytest.raises(PrerequisiteError, match="--set recipe.batch_size=2 --set recipe.accumulation=10"):
        choose_checkpointing(backbone, method, catalog().recipes["show-o-256"], capacity=2**30)
