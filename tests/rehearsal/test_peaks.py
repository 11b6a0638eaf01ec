"""Every backbone trains at Table 7's micro-batch, and draws, on one card of 80 GB, counted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from full_size import NAMES, catalog, empty_backbone, for_drawing

from segros_train.errors import PrerequisiteError
from segros_train.training.fitting import choose_batch, choose_checkpointing, drawing_peak, training_peak

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


@pytest.mark.parametrize("name", NAMES)
def test_a_full_size_backbone_draws_the_batch_that_one_card_holds(
    name: str, tmp_path: Path, record_property: pytest.RecordProperty
) -> None:
    backbone = for_drawing(empty_backbone(name, tmp_path))
    chosen = choose_batch(backbone, backbone.card.settings, capacity=CARD)
    assert chosen is not None
    record_property("drawing", f"{chosen.batch_size} images: {chosen.peak / 2**30:.1f} GiB")
    assert chosen.peak <= LIMIT


def test_a_smaller_device_draws_fewer_images_at_once(tmp_path: Path) -> None:
    backbone = for_drawing(empty_backbone("show-o-256", tmp_path))
    settings = backbone.card.settings
    one = drawing_peak(backbone, settings, 1)
    chosen = choose_batch(backbone, settings, capacity=int(1.5 * one))
    assert chosen is not None and one <= chosen.peak <= 0.95 * 1.5 * one
    assert chosen.batch_size < choose_batch(backbone, settings, capacity=CARD).batch_size
    assert choose_batch(backbone, settings, capacity=one // 2) is None


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
