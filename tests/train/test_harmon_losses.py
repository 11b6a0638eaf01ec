from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from harmon_tiny import (
    CONFIG,
    NUM_CELLS,
    changed,
    generation_batch,
    instruction_batch,
    masks,
    rng,
    tiny_harmon,
)
from steps import draws_of, t2i_loss

from segros_eval.pipeline.catalog import load_catalog
from segros_train.backbone import Conditioning
from segros_train.backbones.harmon.adapter import Harmon, visible_indices
from segros_train.backbones.harmon.diffusion import draw_timesteps, training_steps
from segros_train.backbones.harmon.mar import gather_rows
from segros_train.backbones.harmon.model import HarmonModel, scale_gradient
from segros_train.draws import Draws
from segros_train.types import Supervision

TASKS = Path(__file__).parents[2] / "tasks"
NO_DROPOUT = Conditioning(text_dropout=0.0)
CAPTIONS = ("a red circle", "a big blue square .")


@pytest.fixture
def harmon(tmp_path: Path) -> Harmon:
    backbone = tiny_harmon(tmp_path)
    backbone.configure(NO_DROPOUT)
    return backbone


def some_hints(size: int, count: int) -> torch.Tensor:
    return torch.rand(size, NUM_CELLS, generator=rng(7)).argsort(dim=1)[:, :count].sort(dim=1).values


def loss(harmon: Harmon, supervision: Supervision, *captions: str, seed: int = 0) -> float:
    batch = generation_batch(*captions)
    return t2i_loss(harmon, batch, supervision, seed=seed).item()


@pytest.mark.parametrize("attention", ["paper", "native"])
@pytest.mark.parametrize("num_hints", [0, 5])
def test_padding_a_prompt_changes_nothing(harmon: Harmon, attention: str, num_hints: int) -> None:
    batch = generation_batch(*CAPTIONS)
    latents = harmon.model.encode_images(batch.images)
    visible = visible_indices(masks(2, 12))
    hints = harmon.model.whole_image(latents)[:, :num_hints] if num_hints else None
    prompts = [harmon.tokenizer.caption(caption) for caption in CAPTIONS]
    together = harmon.tokenizer.pad(prompts, device=harmon.device)
    assert not bool(together.valid.all())
    embed = harmon.model.llm.model.embed_tokens
    both = harmon.model.conditions(
        embed(together.ids), together.valid, latents, visible, attention=attention, hints=hints
    )
    for row, prompt in enumerate(prompts):
        alone = harmon.tokenizer.pad([prompt], device=harmon.device)
        one = harmon.model.conditions(
            embed(alone.ids),
            alone.valid,
            latents[row : row + 1],
            visible[row : row + 1],
            attention=attention,
            hints=None if hints is None else hints[row : row + 1],
        )
        torch.testing.assert_close(one[0], both[row], rtol=0, atol=1e-5)


def test_attention_hints_their_slot_and_the_caption_each_change_the_loss(harmon: Harmon) -> None:
    masked, hints = masks(2, 12), some_hints(2, 5)
    hinted = Supervision(caption=True, hints=hints, masked=masked)
    losses = [loss(harmon, Supervision(caption=True, masked=masked), *CAPTIONS), loss(harmon, hinted, *CAPTIONS)]
    losses.append(loss(harmon, hinted, *reversed(CAPTIONS)))
    for conditioning in (
        replace(NO_DROPOUT, attention="paper"),
        replace(NO_DROPOUT, hint_slot="user"),
        replace(NO_DROPOUT, attention="paper", hint_slot="user"),
    ):
        harmon.configure(conditioning)
        losses.append(loss(harmon, hinted, *CAPTIONS))
    assert len(set(losses)) == len(losses)


def test_hints_stand_in_front_of_a_caption_and_behind_the_users_turn_of_a_reconstruction(harmon: Harmon) -> None:
    masked, hints = masks(2, 12), some_hints(2, 5)
    for caption, slot in ((True, "prefix"), (False, "user")):
        supervision = Supervision(caption=caption, hints=hints, masked=masked)
        harmon.configure(NO_DROPOUT)
        default = loss(harmon, supervision, *CAPTIONS)
        harmon.configure(replace(NO_DROPOUT, hint_slot=slot))
        assert loss(harmon, supervision, *CAPTIONS) == default


def test_a_reconstruction_from_all_hints_sees_the_buffers_and_no_other_does(harmon: Harmon) -> None:
    encoded = harmon.encode(generation_batch(*CAPTIONS))
    every = torch.arange(NUM_CELLS).expand(2, -1)

    def count(caption: bool, hints: torch.Tensor) -> int:
        return harmon._hints(encoded, Supervision(caption, hints, masks(2, 12))).shape[1]

    assert count(False, every) == NUM_CELLS + CONFIG.mar.buffer_size
    assert count(True, every) == NUM_CELLS
    assert count(False, every[:, :5]) == 5


def test_a_reconstruction_never_reads_the_caption(harmon: Harmon) -> None:
    supervision = Supervision(caption=False, hints=some_hints(2, 5), masked=masks(2, 12))
    assert loss(harmon, supervision, *CAPTIONS) == loss(harmon, supervision, *reversed(CAPTIONS))


def test_a_dropped_caption_leaves_the_hints(harmon: Harmon) -> None:
    harmon.configure(replace(NO_DROPOUT, text_dropout=1.0))
    masked = masks(2, 12)
    few, many = (Supervision(caption=True, hints=some_hints(2, count), masked=masked) for count in (2, 6))
    assert loss(harmon, few, *CAPTIONS) == loss(harmon, few, *reversed(CAPTIONS))
    assert loss(harmon, few, *CAPTIONS) != loss(harmon, many, *CAPTIONS)


def test_the_loss_is_the_mean_over_the_target_alone(harmon: Harmon) -> None:
    batch, masked = generation_batch(*CAPTIONS), masks(2, 12)
    target = masked & (torch.rand(2, NUM_CELLS, generator=rng(3)) < 0.5)
    measured = t2i_loss(harmon, batch, Supervision(caption=True, masked=masked, target=target))
    latents = harmon.model.encode_images(batch.images)
    prompts = harmon.tokenizer.pad([harmon.tokenizer.caption(text) for text in CAPTIONS], device=harmon.device)
    text = harmon.model.llm.model.embed_tokens(prompts.ids)
    conditions = harmon.model.conditions(text, prompts.valid, latents, visible_indices(masked))
    # Each cell of each item has its draws, whether it is a target or not.
    repeats, draws = CONFIG.mar.diffusion.batch_mul, draws_of(2)
    timesteps = draws.of_items("timesteps", lambda rng: torch.randint(1000, (repeats, NUM_CELLS), generator=rng))
    noise = draws.normal("noise", NUM_CELLS, repeats, CONFIG.vae.embed_dim)[target].transpose(0, 1)
    timesteps = timesteps.transpose(1, 2)[target].T
    expected = harmon.model.mar.diffloss.row_losses(
        conditions[target], latents.flatten(1, 2)[target], timesteps=timesteps, noise=noise
    )
    torch.testing.assert_close(measured, expected.total.mean(), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("supervision", "words"),
    [
        (Supervision(caption=True), "masked"),
        (Supervision(caption=False, masked=masks(2, 12)), "hints"),
        (Supervision(caption=True, masked=torch.arange(16).lt(torch.tensor([[12], [11]]))), "visible"),
        (Supervision(caption=True, masked=masks(2, 12), target=torch.zeros(2, 16, dtype=torch.bool)), "target"),
    ],
)
def test_a_supervision_that_cannot_be_realised_is_refused(harmon: Harmon, supervision: Supervision, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        loss(harmon, supervision, *CAPTIONS)


def test_embeddings_are_those_of_the_caption_and_of_the_encoding_that_hints_are_taken_from(tmp_path: Path) -> None:
    harmon = tiny_harmon(tmp_path, changed(projection_dropout=0.5, attention_dropout=0.5)).train()
    encoded = harmon.encode(generation_batch(*CAPTIONS))
    seen = harmon.embed(encoded)
    some = some_hints(2, 5)
    shown = harmon._hints(encoded, Supervision(caption=True, hints=some, masked=masks(2, 12)))
    assert shown is not None and shown.requires_grad
    assert torch.equal(gather_rows(seen.image, some), shown)
    assert not seen.image.requires_grad and not seen.text.requires_grad
    assert seen.image.shape == (2, NUM_CELLS, CONFIG.llm.hidden_size)
    assert seen.image_grid == seen.latent_grid == (4, 4)
    assert seen.text_valid.sum(dim=1).tolist() == [3, 5]
    table = harmon.model.llm.model.embed_tokens.weight
    words = [harmon.tokenizer.ids(word)[0] for word in "a big blue square .".split()]
    assert torch.equal(seen.text[1][seen.text_valid[1]], table[words])


def test_dropout_works_in_training_and_not_in_evaluation(tmp_path: Path) -> None:
    harmon = tiny_harmon(tmp_path, changed(projection_dropout=0.3))
    harmon.configure(NO_DROPOUT)
    supervision = Supervision(caption=True, masked=masks(2, 12))

    def losses() -> set[float]:
        return {loss(harmon, supervision, *CAPTIONS) for _ in range(3)}

    assert len(losses()) == 1
    harmon.train()
    assert len(losses()) == 3


def test_losses_under_bf16_autocast_are_those_of_float32_to_its_precision(harmon: Harmon) -> None:
    supervision = Supervision(caption=True, hints=some_hints(2, 5), masked=masks(2, 12))
    dialogue = instruction_batch((("is it red ?", "yes"),), (("what ?", "a circle"),))

    def losses() -> list[torch.Tensor]:
        return [t2i_loss(harmon, generation_batch(*CAPTIONS), supervision), harmon.i2t_loss(dialogue)]

    exact = losses()
    with torch.autocast("cpu", torch.bfloat16):
        rounded = losses()
    sum(rounded).backward()
    for one, other in zip(rounded, exact, strict=True):
        assert one.dtype == torch.float32
        # bf16 keeps 8 bits: a few thousandths of the value in each of a dozen layers.
        assert one.item() == pytest.approx(other.item(), rel=0.05)
    assert all(bool(part.grad.isfinite().all()) for part in harmon.parameters() if part.requires_grad)


def test_the_gradient_into_whole_images_is_scaled_and_the_value_is_not() -> None:
    x = torch.tensor([2.0], requires_grad=True)
    y = scale_gradient(x, 0.1)
    (3 * y).backward()
    assert y.item() == 2.0
    assert x.grad.item() == pytest.approx(0.3)


def test_both_losses_reach_every_trainable_parameter_and_the_autoencoder_stays_as_it_is(harmon: Harmon) -> None:
    harmon.train()
    supervision = Supervision(caption=True, hints=some_hints(2, 5), masked=masks(2, 12))
    total = t2i_loss(harmon, generation_batch(*CAPTIONS), supervision)
    total = total + harmon.i2t_loss(instruction_batch((("is it red ?", "yes"),), (("what ?", "a circle"),)))
    total.backward()
    reached = {name for name, part in harmon.named_parameters() if part.grad is not None}
    assert reached == {name for name, part in harmon.named_parameters() if part.requires_grad}
    assert not any("vae" in name for name in reached)
    assert not any(part.training for part in harmon.model.vae.modules())


def test_a_step_encodes_an_image_once_and_for_hints_or_map_alone_the_whole(
    harmon: Harmon, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    for name in ("encode_images", "whole_image"):
        made = getattr(HarmonModel, name)
        count = lambda model, images, name=name, made=made: calls.append(name) or made(model, images)  # noqa: E731
        monkeypatch.setattr(HarmonModel, name, count)
    encoded = harmon.encode(generation_batch(*CAPTIONS))
    harmon.t2i_loss(encoded, Supervision(caption=True, masked=masks(2, 12)), draws_of(2))
    assert calls == ["encode_images"]
    harmon.embed(encoded)
    harmon.t2i_loss(encoded, Supervision(caption=True, hints=some_hints(2, 5), masked=masks(2, 12)), draws_of(2))
    assert calls == ["encode_images", "whole_image"]


def test_every_trainable_parameter_stands_in_one_group(harmon: Harmon) -> None:
    groups = harmon.parameter_groups()
    members = [id(part) for part in (*groups.decayed, *groups.not_decayed)]
    assert sorted(members) == sorted(id(part) for part in harmon.parameters() if part.requires_grad)


@pytest.mark.parametrize(("name", "decayed", "not_decayed"), [("harmon-0.5b", 277, 385), ("harmon-1.5b", 369, 581)])
def test_full_size_groups_are_upstreams_without_the_unread_class_table(
    harmon: Harmon, name: str, decayed: int, not_decayed: int
) -> None:
    card = load_catalog(TASKS).backbones[name]
    with torch.device("meta"):
        groups = Harmon(card, HarmonModel(card.config), harmon.tokenizer).parameter_groups()
    assert (len(groups.decayed) + 1, len(groups.not_decayed)) == (decayed, not_decayed)


def test_masking_ratios_are_one_per_batch_and_follow_the_truncated_normal(harmon: Harmon) -> None:
    ratios = torch.stack([harmon.masking_ratio(Draws(0, step, (0, 1, 2))) for step in range(2000)])
    assert ratios.shape == (2000, 3)
    assert bool((ratios == ratios[:, :1]).all())
    assert 0.7 <= ratios.min() and ratios.max() <= 1.0
    # Mean 0.867, deviation 0.0835: four standard errors of 2000 draws.
    assert ratios[:, 0].mean().item() == pytest.approx(0.867, abs=4 * 0.0835 / 2000**0.5)


def test_dialogues_of_unequal_length_weigh_by_their_answers_tokens(harmon: Harmon) -> None:
    dialogues = ((("is it red ?", "yes"),), (("what ?", "a big blue circle"), ("is it big ?", "no")))
    batch = instruction_batch(*dialogues)
    counts, singles = [], []
    for row in range(2):
        alone = replace(batch, images=batch.images[row : row + 1], dialogues=batch.dialogues[row : row + 1])
        singles.append(harmon.i2t_loss(alone))
        labels = harmon.tokenizer.dialogue(batch.dialogues[row], limit=99).labels
        counts.append(sum(label >= 0 for label in labels))
    expected = sum(count * single for count, single in zip(counts, singles, strict=True)) / sum(counts)
    torch.testing.assert_close(harmon.i2t_loss(batch), expected, rtol=0, atol=1e-5)


def test_a_dialogue_cut_before_its_answers_is_refused(tmp_path: Path) -> None:
    harmon = tiny_harmon(tmp_path, replace(CONFIG, max_dialogue_tokens=6))
    with pytest.raises(ValueError, match="max_dialogue_tokens"):
        harmon.i2t_loss(instruction_batch((("is it red ?", "yes"),)))


def test_timesteps_are_drawn_alike_unless_a_card_says_otherwise() -> None:
    drawn = draw_timesteps(CONFIG.mar.diffusion, 10, rng(3))
    assert torch.equal(drawn, torch.randint(1000, (CONFIG.mar.diffusion.batch_mul, 10), generator=rng(3)))


def test_timesteps_are_drawn_in_proportion_to_the_inverse_share_of_the_signal_up_to_a_limit() -> None:
    drawn = draw_timesteps(replace(CONFIG.mar.diffusion, max_timestep_weight=8.0), 200_000, rng(3))
    assert drawn.shape == (CONFIG.mar.diffusion.batch_mul, 200_000)
    expected = torch.tensor([min(step.signal**-2, 8.0) for step in training_steps()]).unflatten(0, (20, 50)).sum(dim=1)
    found = torch.bincount(drawn.flatten(), minlength=1000).unflatten(0, (20, 50)).sum(dim=1)
    torch.testing.assert_close(found / found.sum(), expected / expected.sum(), rtol=0.03, atol=0)
