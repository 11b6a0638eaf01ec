"""OpenUni's losses: what a supervision changes in them, and what it does not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from openuni_tiny import NUM_CELLS, NUM_VISUAL, changed, generation_batch, instruction_batch, rng, tiny_openuni
from steps import draws_of, t2i_loss
from torch import Tensor

from segros_train.backbone import Conditioning
from segros_train.backbones.openuni.adapter import OpenUni
from segros_train.backbones.openuni.flow import add_noise, masked_velocity_error, timesteps_of
from segros_train.backbones.openuni.model import position_ids, prefix_mask
from segros_train.errors import PrerequisiteError
from segros_train.types import Supervision

CAPTIONS = ("a photo of a red circle", "a photo of two blue squares")
NO_DROPOUT = Conditioning(text_dropout=0.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("openuni")


@pytest.fixture
def openuni(folder: Path) -> OpenUni:
    backbone = tiny_openuni(folder)
    backbone.configure(NO_DROPOUT)
    return backbone


def cells(*indices: int) -> Tensor:
    marked = torch.zeros(len(CAPTIONS), NUM_CELLS, dtype=torch.bool)
    marked[:, list(indices)] = True
    return marked


def hints(*indices: int) -> Tensor:
    return torch.tensor([indices] * len(CAPTIONS))


def loss(backbone: OpenUni, supervision: Supervision, *, seed: int = 0, captions: tuple[str, ...] = CAPTIONS) -> float:
    with torch.no_grad():
        return float(t2i_loss(backbone, generation_batch(*captions), supervision, seed=seed))


def with_config(folder: Path, **fields: str) -> OpenUni:
    backbone = tiny_openuni(folder, changed(**fields))
    backbone.configure(NO_DROPOUT)
    return backbone


def by_hand(backbone: OpenUni, weights: Tensor | None, *, clean: Tensor | None = None) -> float:
    """Take the loss of the captions from its parts, with the draws that a step makes."""
    batch, draws = generation_batch(*CAPTIONS), draws_of(len(CAPTIONS))
    with torch.no_grad():
        latents = backbone.model.encode_images(batch.images)
        timesteps = timesteps_of(draws.uniform("timesteps"))
        noise = draws.normal("noise", *latents.shape[1:])
        sigmas = (timesteps / 1000).view(-1, 1, 1, 1).expand(-1, 1, *latents.shape[2:])
        if clean is not None:
            sigmas = torch.where(clean.view(len(clean), 1, *latents.shape[2:]), 0.0, sigmas)
        conditions = backbone.conditions([backbone.tokenizer.caption(text) for text in CAPTIONS])
        velocity = backbone.model.velocity(add_noise(latents, noise, sigmas), conditions, timesteps)
        return float(masked_velocity_error(velocity, latents, noise, weights))


def test_without_a_mask_the_loss_is_the_native_one(openuni: OpenUni) -> None:
    assert loss(openuni, Supervision(caption=True)) == pytest.approx(by_hand(openuni, None), rel=1e-5)


def test_the_loss_is_taken_on_masked_cells_and_every_cell_is_noised(openuni: OpenUni) -> None:
    masked = cells(0, 7, 20)
    supervision = Supervision(caption=True, masked=masked)
    assert loss(openuni, supervision) == pytest.approx(by_hand(openuni, masked), rel=1e-5)
    assert loss(openuni, supervision) != pytest.approx(by_hand(openuni, None), rel=1e-3)


def test_a_target_narrows_the_loss(openuni: OpenUni) -> None:
    target = cells(7)
    supervision = Supervision(caption=True, masked=cells(0, 7), target=target)
    assert loss(openuni, supervision) == pytest.approx(by_hand(openuni, target), rel=1e-5)


def test_a_mask_of_every_cell_is_the_native_loss_in_every_reading(folder: Path) -> None:
    every = Supervision(caption=True, masked=torch.ones(len(CAPTIONS), NUM_CELLS, dtype=torch.bool))
    losses = [
        loss(with_config(folder, corruption=reading), every) for reading in ("native", "loss_mask", "clean_context")
    ]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)


def test_the_native_reading_takes_no_notice_of_the_mask(folder: Path) -> None:
    native = with_config(folder, corruption="native")
    supervision = Supervision(caption=True, masked=cells(0, 7))
    assert loss(native, supervision) == pytest.approx(loss(native, Supervision(caption=True)), rel=1e-6)


def test_a_clean_context_is_not_noised(folder: Path) -> None:
    backbone, masked = with_config(folder, corruption="clean_context"), cells(0, 7)
    expected = by_hand(backbone, masked, clean=~masked)
    assert loss(backbone, Supervision(caption=True, masked=masked)) == pytest.approx(expected, rel=1e-5)
    assert expected != pytest.approx(by_hand(backbone, masked), rel=1e-3)


def test_each_sample_counts_alike_however_many_cells_it_takes_the_loss_on() -> None:
    velocity, latents = torch.zeros(2, 1, 1, 4), torch.zeros(2, 1, 1, 4)
    noise = torch.tensor([[1.0, 1, 1, 1], [3.0, 0, 0, 0]]).view(2, 1, 1, 4)
    target = torch.tensor([[True, True, True, True], [True, False, False, False]])
    assert float(masked_velocity_error(velocity, latents, noise, target)) == pytest.approx((1 + 9) / 2)


def test_an_infinite_error_off_the_target_does_not_count() -> None:
    noise = torch.tensor([1.0, torch.inf]).view(1, 1, 1, 2)
    zero = torch.zeros_like(noise)
    assert float(masked_velocity_error(zero, zero, noise, torch.tensor([[True, False]]))) == 1.0


def test_hints_condition_the_image_by_which_embeddings_they_are(openuni: OpenUni) -> None:
    first, second = (loss(openuni, Supervision(caption=True, hints=hints(*pair))) for pair in ((0, 5), (0, 6)))
    assert first != second != loss(openuni, Supervision(caption=True))


def test_a_dropped_caption_shows_no_hint_and_takes_the_whole_loss(openuni: OpenUni) -> None:
    openuni.configure(Conditioning(text_dropout=1.0))
    shown = Supervision(caption=True, hints=hints(1, 2, 3), masked=cells(4, 5))
    assert loss(openuni, shown) == pytest.approx(loss(openuni, Supervision(caption=True)), rel=1e-6)
    empty = openuni.tokenizer.no_caption()
    prompts, plain = openuni._prompts(openuni.encode(generation_batch(*CAPTIONS)), shown, draws_of(2))
    assert prompts == [empty] * len(CAPTIONS)
    assert plain == [True] * len(CAPTIONS)


def test_a_caption_too_short_to_be_grounded_is_trained_on_plainly(openuni: OpenUni) -> None:
    shown = Supervision(caption=True, hints=hints(1, 2), masked=cells(4))
    for captions in (("", ""), ("circle", "circle")):
        plain = loss(openuni, Supervision(caption=True), captions=captions)
        assert loss(openuni, shown, captions=captions) == pytest.approx(plain, rel=1e-6)


def test_a_reconstruction_has_an_instruction_and_is_never_dropped(openuni: OpenUni) -> None:
    openuni.configure(Conditioning(text_dropout=1.0))
    shown = Supervision(caption=False, hints=torch.arange(NUM_VISUAL).expand(2, -1))
    prompts, plain = openuni._prompts(openuni.encode(generation_batch(*CAPTIONS)), shown, draws_of(2))
    assert plain == [False, False]
    tokenizer = openuni.tokenizer
    known = [tokenizer.request(text, num_hints=NUM_VISUAL) for text in openuni.instructions]
    assert all(prompt in known for prompt in prompts)


def test_neither_caption_nor_hints_are_refused(openuni: OpenUni) -> None:
    with pytest.raises(ValueError, match="caption or hints"):
        t2i_loss(openuni, generation_batch(*CAPTIONS), Supervision(caption=False))


def test_hints_see_one_another_only_where_the_paper_has_it(folder: Path) -> None:
    shown = Supervision(caption=True, hints=hints(3, 9, 30))
    measured = {}
    for attention in ("paper", "native"):
        for reading in ("bidirectional", "causal"):
            backbone = with_config(folder, hint_attention=reading)
            backbone.configure(replace(NO_DROPOUT, attention=attention))
            measured[attention, reading] = loss(backbone, shown)
    causal = measured["native", "causal"]
    assert measured["paper", "causal"] == measured["native", "bidirectional"] == causal
    assert measured["paper", "bidirectional"] != pytest.approx(causal, rel=1e-6)


def test_the_mask_of_a_prompt_is_finite_and_opens_hints_alone() -> None:
    valid = torch.tensor([[True] * 5, [True, True, True, False, False]])
    marks = torch.tensor([[False, True, True, False, False], [False] * 5])
    mask = prefix_mask(valid, marks, torch.float32)[:, 0]
    assert bool(mask.isfinite().all())
    open_ = mask == 0
    causal = torch.ones(5, 5, dtype=torch.bool).tril()
    expected = causal.clone()
    expected[1, 2] = True
    assert torch.equal(open_[0], expected)
    assert torch.equal(open_[1], causal & valid[1])


def test_hints_stand_in_front_of_the_template_where_that_is_asked_for(openuni: OpenUni) -> None:
    shown, image = Supervision(caption=True, hints=hints(1, 2)), openuni.tokenizer.image_id
    openuni.configure(replace(NO_DROPOUT, hint_slot="prefix"))
    prompts, _ = openuni._prompts(openuni.encode(generation_batch(*CAPTIONS)), shown, draws_of(2))
    bare = openuni.tokenizer.caption(CAPTIONS[0])
    assert prompts[0].ids == (image, image, *bare.ids)
    openuni.configure(replace(NO_DROPOUT, hint_slot="user"))
    prompts, _ = openuni._prompts(openuni.encode(generation_batch(*CAPTIONS)), shown, draws_of(2))
    assert prompts[0].ids != (image, image, *bare.ids)
    assert prompts[0].ids.count(image) == 2


def test_padding_of_a_prompt_changes_no_condition(openuni: OpenUni) -> None:
    rows = [openuni.tokenizer.caption(text) for text in (*CAPTIONS, "a circle")]
    with torch.no_grad():
        together = openuni.conditions(rows)
        alone = torch.cat([openuni.conditions([row]) for row in rows])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


def test_a_prefix_without_gradient_leaves_the_gradient_of_the_queries_as_it_is(openuni: OpenUni) -> None:
    model = openuni.model
    prompts = openuni.tokenizer.pad([openuni.tokenizer.caption(text) for text in CAPTIONS], device="cpu")
    embedded = model.embed_ids(prompts.ids)
    direction = torch.randn(2, model.config.num_queries, model.config.llm.hidden_size, generator=rng())
    (model.query(model.read(embedded, prompts.valid)) * direction).sum().backward()
    split, model.meta_queries.grad = model.meta_queries.grad, None
    full = torch.nn.functional.pad(prompts.valid, (0, model.config.num_queries), value=True)
    whole = torch.cat([embedded, model.meta_queries.expand(2, -1, -1)], dim=1)
    hidden = model.language(
        inputs_embeds=whole, attention_mask=full.long(), position_ids=position_ids(full), use_cache=False
    ).last_hidden_state
    (hidden[:, -model.config.num_queries :] * direction).sum().backward()
    torch.testing.assert_close(split, model.meta_queries.grad, rtol=1e-4, atol=1e-4)


def test_only_queries_connector_projection_and_generator_are_trained(openuni: OpenUni) -> None:
    t2i_loss(openuni, generation_batch(*CAPTIONS), Supervision(caption=True)).backward()
    trained = {name.split(".")[1] for name, parameter in openuni.named_parameters() if parameter.grad is not None}
    assert trained == {"meta_queries", "connector", "projector", "transformer"}
    decayed = openuni.parameter_groups().decayed
    assert any(parameter is openuni.model.meta_queries for parameter in decayed)
    assert all(parameter.dim() > 1 for parameter in decayed)


def test_answers_have_a_loss_and_no_gradient(openuni: OpenUni) -> None:
    batch = instruction_batch((("How many?", "two"),), (("Is it red?", "Yes"), ("Why?", "It is a red circle")))
    measured = openuni.i2t_loss(batch)
    assert float(measured) > 0
    assert not measured.requires_grad


def test_every_answer_is_learned_with_its_end_and_nothing_else(openuni: OpenUni) -> None:
    turns = instruction_batch((("How many?", "two"), ("Why?", "red"))).dialogues[0]
    dialogue = openuni.tokenizer.dialogue(turns, num_image_tokens=NUM_VISUAL, limit=500)
    supervised = [index for index in dialogue.labels if index != -100]
    assert openuni.tokenizer.tokenizer.decode(supervised, skip_special_tokens=False) == (
        "two<|im_end|>\nred<|im_end|>\n"
    )
    assert all(label in (-100, index) for index, label in zip(dialogue.ids, dialogue.labels, strict=True))


def test_a_limit_that_leaves_no_answer_is_refused(folder: Path) -> None:
    backbone = tiny_openuni(folder, changed(max_dialogue_tokens=5))
    with pytest.raises(ValueError, match="max_dialogue_tokens"):
        backbone.i2t_loss(instruction_batch((("How many?", "two"),)))


def test_a_users_instructions_are_read_from_a_file(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "requests.txt"
    path.write_text("Describe it.\n\n  What is it?  \n", encoding="utf-8")
    backbone = tiny_openuni(folder, changed(instructions_file=str(path)))
    assert backbone.instructions == ("Describe it.", "What is it?")
    with pytest.raises(PrerequisiteError, match="absent.txt"):
        tiny_openuni(folder, changed(instructions_file=str(tmp_path / "absent.txt")))


@pytest.mark.parametrize("name", ["corruption", "hint_attention", "truncation"])
def test_an_unknown_reading_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        changed(**{name: "other"})


def test_training_noise_is_drawn_evenly_from_every_timestep() -> None:
    uniform = (torch.arange(4000) + 0.5) / 4000
    steps, counts = timesteps_of(uniform).unique(return_counts=True)
    assert steps.tolist() == list(range(1, 1001))
    assert int(counts.max()) - int(counts.min()) <= 1
    noisy = add_noise(torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1), timesteps_of(torch.tensor([0.0])) / 1000)
    assert float(noisy) == 1.0
