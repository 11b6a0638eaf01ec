"""What training draws for an item is the item's own, however items are split over ranks and micro-batches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from harmon_tiny import tiny_harmon
from openuni_tiny import tiny_openuni
from showo_tiny import tiny_showo
from torch import Tensor
from toy_training import ToyImages, noisy_pixels

from segros_train.backbone import Backbone
from segros_train.data.batches import Share, generation_batches
from segros_train.draws import Draws
from segros_train.methods.segros import SeGroS
from segros_train.methods.sft import SFT
from segros_train.types import Embeddings, GenerationBatch

GLOBAL_BATCH = 8
FAMILIES: dict[str, Callable[[Path], Backbone]] = {
    "harmon": tiny_harmon,
    "showo": tiny_showo,
    "openuni": tiny_openuni,
}


def batches(num_ranks: int, *, micro_step: int = 3, seed: int = 0) -> list[GenerationBatch]:
    """Return what each rank is given of the eight items of a micro-step."""
    found = []
    for rank in range(num_ranks):
        made = generation_batches(
            ToyImages(),
            transform=noisy_pixels,
            batch_size=GLOBAL_BATCH // num_ranks,
            seed=seed,
            share=Share(rank, num_ranks),
        )
        batch = made[micro_step].batch
        assert batch is not None
        found.append(batch)
    return found


def seen(batch: GenerationBatch) -> Embeddings:
    """Return embeddings that depend on the item alone."""
    rows = [torch.Generator().manual_seed(int(item_id.split("-")[1])) for item_id in batch.item_ids]
    text, image = (torch.stack([torch.randn(n, 6, generator=rng) for rng in rows]) for n in (5, 16))
    return Embeddings(text, torch.ones(text.shape[:2], dtype=torch.bool), image, (4, 4), (8, 8))


def by_item(batch: GenerationBatch, ratio: Callable[[Draws], Tensor | None]) -> dict[str, tuple[Tensor, ...]]:
    """Return all that a rank draws, by item: crop, ratio, masks, hints, caption drop, instruction, timesteps, noise."""
    draws = batch.draws
    assert draws is not None
    shares = ratio(draws)
    shares = torch.full((len(draws),), 0.5) if shares is None else shares
    native, grounded = (method.supervise(seen(batch), shares, draws) for method in (SFT(), SeGroS()))
    assert native.masked is not None and grounded.masked is not None and grounded.hints is not None
    drawn = (
        batch.images,
        shares,
        native.masked,
        grounded.masked,
        grounded.hints,
        draws.uniform("caption drop"),
        torch.tensor(draws.below("instruction", 1000)),
        draws.uniform("timesteps"),
        draws.normal("noise", 3, 4),
    )
    return dict(zip(batch.item_ids, zip(*drawn, strict=True), strict=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_one_two_four_and_eight_ranks_draw_the_same_for_every_item(family: str, tmp_path: Path) -> None:
    backbone = FAMILIES[family](tmp_path)
    alone = by_item(batches(1)[0], backbone.masking_ratio)
    assert len(alone) == GLOBAL_BATCH
    for num_ranks in (2, 4, 8):
        shared: dict[str, tuple[Tensor, ...]] = {}
        for batch in batches(num_ranks):
            shared |= by_item(batch, backbone.masking_ratio)
        assert shared.keys() == alone.keys()
        for item_id, drawn in alone.items():
            assert all(torch.equal(one, other) for one, other in zip(shared[item_id], drawn, strict=True)), item_id


def test_items_steps_seeds_and_purposes_draw_differently() -> None:
    (batch,) = batches(1)
    assert batch.draws is not None
    drawn = batch.draws.normal("noise", 4)
    assert len({tuple(row.tolist()) for row in drawn}) == GLOBAL_BATCH
    others = (batches(1, micro_step=4)[0].draws, batches(1, seed=1)[0].draws)
    assert not any(torch.equal(drawn, other.normal("noise", 4)) for other in others if other is not None)
    assert not torch.equal(drawn, batch.draws.normal("other noise", 4))


def test_an_item_that_cannot_be_read_moves_no_draw_of_the_others() -> None:
    (whole,) = batches(1)
    broken = int(whole.item_ids[2].split("-")[1])
    made = generation_batches(
        ToyImages(broken=frozenset({broken})), transform=noisy_pixels, batch_size=GLOBAL_BATCH, seed=0, share=Share()
    )
    left = made[3].batch
    assert left is not None and left.draws is not None and whole.draws is not None
    kept = [place for place, item_id in enumerate(whole.item_ids) if item_id in left.item_ids]
    assert len(kept) == GLOBAL_BATCH - 1
    assert torch.equal(left.draws.normal("noise", 4), whole.draws.normal("noise", 4)[kept])


def test_a_ratio_of_the_whole_micro_batch_is_the_same_on_every_rank_and_another_in_the_next(tmp_path: Path) -> None:
    harmon = tiny_harmon(tmp_path)
    ratios = [
        float(harmon.masking_ratio(batch.draws)[0])  # type: ignore[arg-type, index]
        for micro_step in (3, 4)
        for batch in batches(4, micro_step=micro_step)
    ]
    assert len(set(ratios[:4])) == len(set(ratios[4:])) == 1
    assert ratios[0] != ratios[4]
