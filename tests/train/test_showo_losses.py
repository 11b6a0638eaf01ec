"""Show-o's losses: what conditions an image, where hints stand, what sees what, and where the loss is taken."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from showo_tiny import CODES_ONLY, NUM_CELLS, NUM_PATCHES, generation_batch, instruction_batch, masks, rng, tiny_showo
from steps import draws_of, embed, t2i_loss
from torch import Tensor

from segros_train.backbone import Conditioning
from segros_train.backbones.showo.adapter import Showo
from segros_train.backbones.showo.layout import drawing_layout, reading_mask
from segros_train.masking import num_masked
from segros_train.training.optim import build_optimizer, keep_master_weights
from segros_train.types import GenerationBatch, Recipe, Supervision

BATCH = generation_batch("a red circle", "a big blue square .", "a green circle")
MASKED = masks(3, 10)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("showo")


@pytest.fixture
def showo(folder: Path) -> Showo:
    backbone = tiny_showo(folder)
    backbone.configure(Conditioning(text_dropout=0.0))
    return backbone


def loss(showo: Showo, supervision: Supervision, batch: GenerationBatch = BATCH) -> float:
    with torch.no_grad():
        return float(t2i_loss(showo, batch, supervision))


def hints(count: int) -> Tensor:
    return torch.stack([torch.randperm(NUM_PATCHES, generator=rng(row))[:count].sort().values for row in range(3)])


def test_the_loss_reads_the_caption_the_visible_cells_and_the_hints(showo: Showo) -> None:
    plain = loss(showo, Supervision(caption=True, masked=MASKED))
    assert plain != loss(showo, Supervision(caption=True, masked=MASKED, hints=hints(4)))
    showo.configure(Conditioning(text_dropout=1.0))
    assert plain != loss(showo, Supervision(caption=True, masked=MASKED))


def test_a_hidden_cell_tells_the_model_nothing(showo: Showo) -> None:
    """The gradient of the inputs reaches visible cells alone: hidden ones all show the mask."""
    codes = showo.model.encode_images(BATCH.images).flatten(1)
    target = torch.zeros_like(MASKED)
    target[:, MASKED[0].nonzero()[0]] = True
    target &= MASKED
    supervision = Supervision(caption=True, masked=MASKED, target=target)
    before = loss(showo, supervision)
    changed = (codes + 1) % showo.model.config.vq.codebook_size
    for places, is_seen in ((MASKED & ~target, False), (~MASKED, True)):
        latents = [{"codes": row} for row in torch.where(places, changed, codes)]
        assert (loss(showo, supervision, replace(BATCH, latents=tuple(latents))) != before) == is_seen


def test_the_loss_is_the_mean_over_the_target_cells(showo: Showo) -> None:
    first = MASKED & (MASKED.long().cumsum(dim=1) <= 4)
    rest = MASKED & ~first
    parts = [loss(showo, Supervision(caption=True, masked=MASKED, target=target)) for target in (first, rest)]
    whole = loss(showo, Supervision(caption=True, masked=MASKED))
    assert whole == pytest.approx((4 * parts[0] + 6 * parts[1]) / 10, rel=1e-5)


def test_boundary_targets_add_two_targets_to_each_row(folder: Path) -> None:
    plain, bordered = (tiny_showo(folder, boundary_targets=flag) for flag in (False, True))
    for backbone in (plain, bordered):
        backbone.configure(Conditioning(text_dropout=0.0))
    supervision = Supervision(caption=True, masked=MASKED)
    without, both = loss(plain, supervision), loss(bordered, supervision)
    image = torch.cat(
        [
            torch.full((3, 1), plain.tokenizer.special["soi"]),
            (plain.encode(BATCH)["codes"] + plain.model.config.image_offset).masked_fill(
                MASKED, plain.model.config.mask_id
            ),
            torch.full((3, 1), plain.tokenizer.special["eoi"]),
        ],
        dim=1,
    )
    with torch.no_grad():
        states = plain._states(plain.encode(BATCH), supervision, image, draws_of(3))
        borders = plain.model.nll(states[:, [0, -1]], image[:, [0, -1]])
    assert both == pytest.approx((30 * without + 6 * float(borders)) / 36, rel=1e-5)


def test_pads_left_out_change_no_state(showo: Showo) -> None:
    """A caption alone and beside a longer one, hence with pads, has the same loss, wherever pads would begin."""
    one = generation_batch("a red circle")
    supervision = Supervision(caption=True, masked=MASKED[:1], hints=hints(4)[:1])
    alone = float(t2i_loss(showo, one, supervision).detach())
    captions = ("a red circle", "a big red circle a big blue square .")
    beside = GenerationBatch(one.images.expand(2, -1, -1, -1), captions, ("first", "second"))
    target = torch.stack([MASKED[0], torch.zeros_like(MASKED[0])])
    together = Supervision(caption=True, masked=MASKED[[0, 0]], target=target, hints=hints(4)[[0, 0]])
    assert float(t2i_loss(showo, beside, together).detach()) == pytest.approx(alone, rel=1e-5)


def test_a_dropped_caption_takes_its_hints_along(folder: Path) -> None:
    without_text = Supervision(caption=True, masked=MASKED)
    with_hints = Supervision(caption=True, masked=MASKED, hints=hints(4))
    for dropped, equal in ((True, True), (False, False)):
        backbone = tiny_showo(folder, drop_hints_with_text=dropped)
        backbone.configure(Conditioning(text_dropout=1.0))
        same = loss(backbone, with_hints) == pytest.approx(loss(backbone, without_text), rel=1e-5)
        assert same is equal


@pytest.mark.parametrize("attention", ["paper", "native"])
def test_without_hints_both_attentions_are_upstreams(showo: Showo, attention: str) -> None:
    supervision = Supervision(caption=True, masked=MASKED)
    native = loss(showo, supervision)
    showo.configure(Conditioning(attention=attention, text_dropout=0.0))  # type: ignore[arg-type]
    assert loss(showo, supervision) == native


@pytest.mark.parametrize("slot", ["prefix", "user"])
def test_hints_see_each_other_text_sees_hints_and_codes_see_everything(slot: str) -> None:
    valid = torch.tensor([[False, True, True, True], [True, True, True, True]])
    layout = drawing_layout(valid, 5, num_hints=4, slot=slot)  # type: ignore[arg-type]
    paper, native = (layout.mask(kind)[:, 0] for kind in ("paper", "native"))
    block, text, image = slice(0, 4), slice(4, 8), slice(8, 13)
    assert bool(paper[:, block, block].all())
    assert not bool(paper[:, block, 4:].any())
    assert bool(paper[1, text, block].all()) and bool(paper[0, 5:8, block].all())
    assert not bool(paper[:, text, image].any())
    assert torch.equal(paper[1, text, text], torch.ones(4, 4).tril().bool())
    for mask in (paper, native):
        assert bool(mask[1, image].all())
        assert not bool(mask[0, image, 4].any()) and bool(mask[0, image, 5:].all())
        assert not bool(mask[0, :4, 4].any())
    assert bool(native[1, :, 1:3].all()), "hints are seen by all"
    assert not bool(native[:, 0, 3].any()), "the opening token does not see the closing one"


@pytest.mark.parametrize("slot", ["prefix", "user"])
def test_positions_follow_the_slot_and_start_at_the_pads(slot: str) -> None:
    valid = torch.tensor([[False, True, True, True]])
    order = drawing_layout(valid, 3, num_hints=3, slot=slot, offset=5).positions[0].tolist()  # type: ignore[arg-type]
    hint_block, pad, task, rest, image = order[:3], order[3], order[4], order[5:7], order[7:]
    assert pad == 5
    assert image == [12, 13, 14]
    assert (hint_block, task) == (([6, 7, 8], 9) if slot == "prefix" else ([7, 8, 9], 6))
    assert rest == [10, 11]


def test_rows_without_hints_have_them_as_pads() -> None:
    valid = torch.ones(2, 3, dtype=torch.bool)
    layout = drawing_layout(valid, 4, num_hints=3, with_hints=torch.tensor([True, False]))
    assert layout.valid.sum(dim=1).tolist() == [10, 7]
    mask = layout.mask("paper")[:, 0]
    assert not bool(mask[1, 3:, :3].any())
    assert bool(mask.any(dim=2).all()), "no row is empty"


@pytest.mark.parametrize("slot", ["prefix", "user"])
@pytest.mark.parametrize("num_hints", [0, 5])
@pytest.mark.parametrize("padded", [False, True])
def test_attention_in_blocks_of_rows_equals_the_dense_mask(
    showo: Showo, slot: str, num_hints: int, padded: bool
) -> None:
    valid = torch.tensor([[not padded, True, True, True], [True, True, True, True]])
    kept = torch.tensor([True, not padded])
    layout = drawing_layout(valid, 6, num_hints=num_hints, with_hints=kept, slot=slot)  # type: ignore[arg-type]
    inputs = torch.randn(2, layout.order.shape[1], 32, generator=rng())
    blocks = layout.blocks("paper")
    assert blocks is not None
    with torch.no_grad():
        dense = showo.model.hidden(inputs, layout.positions, mask=layout.mask("paper"))
        split = showo.model.hidden(inputs, layout.positions, blocks=blocks)
    torch.testing.assert_close(split[layout.valid], dense[layout.valid], rtol=0, atol=1e-5)
    assert (layout.blocks("native") is None) is (num_hints > 0)
    assert padded or blocks[-1].mask is None


def test_reading_is_causal_but_for_the_image() -> None:
    mask = reading_mask(8, first=2, last=5, device=torch.device("cpu"))[0, 0]
    assert bool(mask[:, 2:5].all())
    outside = [column for column in range(8) if not 2 <= column < 5]
    assert torch.equal(mask[outside][:, outside], torch.ones(5, 5).tril().bool())


@pytest.mark.parametrize("code_hints", ["half", "blur8"])
def test_without_a_tower_hints_are_codes_of_a_coarser_image(folder: Path, code_hints: str) -> None:
    backbone = tiny_showo(folder, CODES_ONLY, code_hints=code_hints)
    seen = embed(backbone, BATCH)
    assert seen.latent_grid == (4, 4)
    assert seen.image_grid == ((2, 2) if code_hints == "half" else (4, 4))
    all_of_them = torch.arange(seen.image.shape[1]).expand(3, -1)
    supervision = Supervision(caption=False, hints=all_of_them, masked=MASKED)
    t2i_loss(backbone, BATCH, supervision).backward()
    assert backbone.model.showo.model.embed_tokens.weight.grad is not None
    own = backbone.model.embed(
        backbone.model.encode_images(BATCH.images).flatten(1) + backbone.model.config.image_offset
    )
    assert seen.image.shape != own.shape or not torch.equal(seen.image, own)


def test_gradients_reach_the_projector_through_hints_and_never_the_frozen_parts(showo: Showo) -> None:
    showo.train()
    t2i_loss(showo, BATCH, Supervision(caption=True, masked=MASKED, hints=hints(4))).backward()
    gradient = next(showo.model.mm_projector.parameters()).grad
    assert gradient is not None and bool(gradient.any())
    assert all(parameter.grad is None for part in (showo.model.vq, showo.model.clip) for parameter in part.parameters())


def test_what_cannot_be_realised_is_refused(showo: Showo) -> None:
    with pytest.raises(ValueError, match="caption or hints"):
        t2i_loss(showo, BATCH, Supervision(caption=False, masked=MASKED))
    with pytest.raises(ValueError, match="masked cells"):
        t2i_loss(showo, BATCH, Supervision(caption=True))
    with pytest.raises(ValueError, match="no target cell"):
        t2i_loss(showo, BATCH, Supervision(caption=True, masked=torch.zeros_like(MASKED)))


def test_methods_hide_as_many_cells_as_upstream_rounds_to(showo: Showo) -> None:
    draws = draws_of(500)
    ratio = torch.cos(draws.uniform("masking ratio") * (torch.pi / 2))
    counts = num_masked(showo.masking_ratio(draws), NUM_CELLS)
    assert torch.equal(counts, (NUM_CELLS * ratio).round().long().clamp(min=1))


def test_answers_alone_are_learned_and_longer_neighbours_change_nothing(showo: Showo) -> None:
    short, long = (("is it red ?", "yes"),), (("what is it ?", "a big blue square ."), ("is it big ?", "no"))
    both = instruction_batch(short, long)
    losses = []
    for row, dialogue in enumerate((short, long)):
        one = instruction_batch(dialogue)
        losses.append(
            float(showo.i2t_loss(type(one)(both.images[row : row + 1], one.dialogues, one.item_ids)).detach())
        )
    counts = (2, 6 + 2)
    mean = sum(count * value for count, value in zip(counts, losses, strict=True)) / sum(counts)
    assert float(showo.i2t_loss(both).detach()) == pytest.approx(mean, rel=1e-5)


def test_an_answer_beyond_the_limit_is_refused(folder: Path) -> None:
    backbone = tiny_showo(folder, max_dialogue_tokens=3)
    with pytest.raises(ValueError, match="max_dialogue_tokens"):
        backbone.i2t_loss(instruction_batch((("is it red ?", "yes"),)))


def test_biases_alone_are_not_decayed(showo: Showo) -> None:
    names = {id(parameter): name for name, parameter in showo.named_parameters()}
    groups = showo.parameter_groups()
    assert all(names[id(parameter)].endswith("bias") for parameter in groups.not_decayed)
    assert not any(names[id(parameter)].endswith("bias") for parameter in groups.decayed)


def test_updates_below_the_resolution_of_bf16_are_kept(showo: Showo) -> None:
    """At the paper's rate of 5e-7 an update is lost in a bf16 weight, and is not in ours, loaded in bf16 or not."""
    for parameter in showo.model.showo.parameters():
        parameter.data = parameter.data.bfloat16()
    keep_master_weights(showo)
    weight = showo.model.showo.lm_head.weight
    assert weight.dtype == torch.float32
    before = weight.detach().clone()
    optimizer = build_optimizer(showo, Recipe(optimizer_steps=1, batch_size=3, learning_rate=5e-7, weight_decay=0.0))
    t2i_loss(showo, BATCH, Supervision(caption=True, masked=MASKED)).backward()
    optimizer.step()
    moved = weight.detach() - before
    assert float(moved.abs().max()) == pytest.approx(5e-7, rel=0.2)
    big = before.abs() > 1e-3
    assert torch.equal((before + moved).bfloat16()[big], before.bfloat16()[big]), "bf16 weights would not have moved"
    assert bool((weight.detach() != before)[big].any())
