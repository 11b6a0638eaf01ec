"""Every backbone that comes with weights keeps the contract of `Backbone`, under every declared method."""

from __future__ import annotations

import math
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from steps import draws_of, embed
from torch import Generator, Tensor

from segros_eval.pipeline.catalog import Catalog
from segros_train.backbone import Backbone, Conditioning
from segros_train.backbones.common.precision import Precision
from segros_train.backbones.loading import family_of, load
from segros_train.data.samples import GenerationSample, InstructionSample
from segros_train.data.shapes.sets import GenerationSet, InstructionSet
from segros_train.errors import PrerequisiteError
from segros_train.method import TrainTask
from segros_train.types import BackboneCard, Checkpointing, GenerationBatch, InstructionBatch

BATCH = 4
PROMPTS = ("a photo of a red circle", "a photo of two blue squares", "a photo of a green star left of a yellow circle")
QUESTIONS = ("Is there a red circle in the image?", "How many squares are there?")


def generator(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def drawings() -> list[GenerationSample]:
    return [GenerationSet(seed=5, size=BATCH)[index] for index in range(BATCH)]


def dialogues() -> list[InstructionSample]:
    return [InstructionSet(seed=6, size=BATCH)[index] for index in range(BATCH)]


@pytest.fixture(scope="module")
def backbone(tiny_card: BackboneCard) -> Backbone:
    return load(tiny_card)


@pytest.fixture(scope="module")
def captioned(backbone: Backbone) -> GenerationBatch:
    prepare, samples = backbone.image_transform("generation"), drawings()
    return GenerationBatch(
        images=torch.stack([prepare(sample.image, generator()) for sample in samples]),
        captions=tuple(sample.caption for sample in samples),
        item_ids=tuple(sample.item_id for sample in samples),
    )


@pytest.fixture(scope="module")
def asked(backbone: Backbone) -> InstructionBatch:
    prepare, samples = backbone.image_transform("understanding"), dialogues()
    return InstructionBatch(
        images=torch.stack([prepare(sample.image, generator()) for sample in samples]),
        dialogues=tuple(sample.dialogue for sample in samples),
        item_ids=tuple(sample.item_id for sample in samples),
    )


def loss_under(backbone: Backbone, task: TrainTask, batch: GenerationBatch, *, seed: int = 0) -> Tensor:
    """Return the loss of one micro-step, as the loop takes it."""
    assert task.method is not None
    backbone.configure(Conditioning(attention=task.attention, hint_slot=task.hint_slot))
    encoded, draws = backbone.encode(batch), draws_of(BATCH, seed)
    seen = backbone.embed(encoded)
    supervision = task.method.supervise(seen, backbone.masking_ratio(draws), draws)
    num_cells = seen.latent_grid[0] * seen.latent_grid[1]
    supervision.check(num_visual=seen.image.shape[1], num_cells=num_cells)
    return backbone.t2i_loss(encoded, supervision, draws)


def trained_parameters(backbone: Backbone) -> list[Tensor]:
    groups = backbone.parameter_groups()
    return [*groups.decayed, *groups.not_decayed]


def test_every_method_takes_a_training_step(
    backbone: Backbone, captioned: GenerationBatch, trained_task: TrainTask
) -> None:
    backbone.train()
    backbone.zero_grad(set_to_none=True)
    loss = loss_under(backbone, trained_task, captioned)
    loss.backward()
    assert loss.dim() == 0
    assert math.isfinite(float(loss.detach()))
    gradients = [parameter.grad for parameter in trained_parameters(backbone) if parameter.grad is not None]
    assert all(bool(gradient.isfinite().all()) for gradient in gradients)
    assert any(bool(gradient.count_nonzero()) for gradient in gradients)
    assert all(p.grad is None for p in backbone.parameters() if not p.requires_grad)


@pytest.mark.parametrize("checkpointing", ["blocks", "all"])
@pytest.mark.parametrize("method", ["sft", "reca", "segros", "answers"])
def test_recomputation_changes_no_loss_or_gradient(
    backbone: Backbone,
    captioned: GenerationBatch,
    asked: InstructionBatch,
    catalog: Catalog,
    method: str,
    checkpointing: Checkpointing,
) -> None:
    backbone.train()
    found = []
    for mode in ("none", checkpointing):
        try:
            backbone.set_checkpointing(mode)
        except PrerequisiteError as refusal:
            pytest.skip(str(refusal))
        backbone.zero_grad(set_to_none=True)
        torch.manual_seed(0)
        loss = (
            backbone.i2t_loss(asked)
            if method == "answers"
            else loss_under(backbone, catalog.methods[method], captioned)
        )
        if loss.requires_grad:
            loss.backward()
        gradients = [parameter.grad for parameter in trained_parameters(backbone)]
        found.append([loss.detach(), *[value for value in gradients if value is not None]])
    backbone.set_checkpointing("none")
    assert len(found[0]) == len(found[1])
    for kept, recomputed in zip(*found, strict=True):
        # The same operations on the same numbers, except that sums over rows are taken in parts.
        apart = torch.linalg.vector_norm(recomputed - kept)
        assert float(apart) <= 1e-5 * float(torch.linalg.vector_norm(kept)) + 1e-9


def test_equal_generators_give_equal_losses(
    backbone: Backbone, captioned: GenerationBatch, trained_task: TrainTask
) -> None:
    backbone.eval()
    with torch.no_grad():
        losses = [float(loss_under(backbone, trained_task, captioned, seed=seed)) for seed in (1, 1, 2)]
    assert losses[0] == losses[1] != losses[2]


def test_answers_are_learned_from_unless_understanding_is_frozen(
    backbone: Backbone, asked: InstructionBatch, tiny_card: BackboneCard
) -> None:
    backbone.train()
    backbone.zero_grad(set_to_none=True)
    loss = backbone.i2t_loss(asked)
    assert float(loss.detach()) > 0
    assert loss.requires_grad != tiny_card.understanding_is_frozen
    if loss.requires_grad:
        loss.backward()
        assert any(p.grad is not None and bool(p.grad.count_nonzero()) for p in trained_parameters(backbone))


def test_each_trained_parameter_is_decayed_or_not(backbone: Backbone) -> None:
    named = [id(parameter) for parameter in trained_parameters(backbone)]
    assert len(set(named)) == len(named)
    assert set(named) == {id(parameter) for parameter in backbone.parameters() if parameter.requires_grad}


def test_frozen_parts_stay_in_eval_mode(backbone: Backbone) -> None:
    backbone.train()
    parts = [module for module in backbone.modules() if len(list(module.children())) and len(list(module.parameters()))]
    frozen = [part for part in parts if not any(parameter.requires_grad for parameter in part.parameters())]
    assert frozen
    assert not any(part.training for part in frozen)
    backbone.eval()


def test_embeddings_stand_for_the_tokens_and_patches_of_the_sample(
    backbone: Backbone, captioned: GenerationBatch
) -> None:
    seen = embed(backbone, captioned)
    assert not seen.text.requires_grad
    assert not seen.image.requires_grad
    tokens = [len(backbone.caption_tokens(caption)) for caption in captioned.captions]
    assert seen.text_valid.sum(dim=1).tolist() == tokens
    assert seen.text.shape[2] == seen.image.shape[2]


def test_grids_are_told_without_embedding(backbone: Backbone, captioned: GenerationBatch) -> None:
    seen = embed(backbone, captioned)
    assert backbone.grids(captioned) == (seen.image_grid, seen.latent_grid)


def test_captions_and_images_are_embedded_alone_as_in_a_batch(backbone: Backbone, captioned: GenerationBatch) -> None:
    together = embed(backbone, captioned)
    for row in range(BATCH):
        one = slice(row, row + 1)
        one_alone = GenerationBatch(captioned.images[one], captioned.captions[one], captioned.item_ids[one])
        alone = embed(backbone, one_alone)
        # Rounding is a share of what is summed, whatever the size of one entry: it is compared as a whole, by its norm.
        # Convolutions of other batch sizes round otherwise, and trained weights enlarge that to 5e-5; another picture's
        # share in the embedding would be some percent.
        apart = torch.linalg.vector_norm(alone.image[0] - together.image[row])
        share = float(apart / torch.linalg.vector_norm(together.image[row]))
        assert share < 1e-3, f"the image embedded alone is {share:.1e} of its size away from the one in a batch"
        torch.testing.assert_close(alone.text[0][alone.text_valid[0]], together.text[row][together.text_valid[row]])


def test_the_native_schedule_hides_a_share(backbone: Backbone) -> None:
    shares = backbone.masking_ratio(draws_of(BATCH))
    if shares is not None:
        assert shares.shape == (BATCH,)
        assert bool(((shares > 0) & (shares <= 1)).all())


def test_images_come_in_order_and_do_not_depend_on_their_batch(backbone: Backbone, tiny_card: BackboneCard) -> None:
    settings = replace(tiny_card.settings, num_steps=2, batch_size=2)
    drawn = list(backbone.generate(PROMPTS, seeds=(3, 4, 5), settings=settings))
    alone = [
        next(iter(backbone.generate([p], seeds=[s], settings=settings)))
        for p, s in zip(PROMPTS, (3, 4, 5), strict=True)
    ]
    assert all(image.mode == "RGB" and image.size == (tiny_card.image_size_px,) * 2 for image in drawn)
    for image, other in zip(drawn, alone, strict=True):
        apart = [abs(a - b) for a, b in zip(image.tobytes(), other.tobytes(), strict=True)]
        assert max(apart) <= 2, "rounding may move a pixel by a step, another draw moves it by more"


def test_images_are_decoded_a_few_at_a_time(
    backbone: Backbone, tiny_card: BackboneCard, monkeypatch: pytest.MonkeyPatch
) -> None:
    if tiny_card.family == "pixels":
        pytest.skip("this family draws and decodes image by image")
    settings = replace(tiny_card.settings, num_steps=2, batch_size=3)
    at_once = list(backbone.generate(PROMPTS, seeds=(3, 4, 5), settings=settings))
    counts: list[int] = []
    for name in {"decode_latents", "decode_codes"} & set(dir(backbone.model)):
        decode = getattr(backbone.model, name)
        monkeypatch.setattr(backbone.model, name, lambda part, decode=decode: counts.append(len(part)) or decode(part))
    monkeypatch.setattr("segros_train.backbones.common.images.DECODED_PX", 2 * tiny_card.image_size_px**2)
    in_parts = list(backbone.generate(PROMPTS, seeds=(3, 4, 5), settings=settings))
    assert counts == [2, 1]
    for image, other in zip(in_parts, at_once, strict=True):
        apart = [abs(a - b) for a, b in zip(image.tobytes(), other.tobytes(), strict=True)]
        assert max(apart) <= 1, "rounding may move a pixel by a step, another picture differs by more"


def test_weights_read_in_bf16_draw_nearly_the_same_pictures_and_answer_alike(
    backbone: Backbone, tiny_card: BackboneCard
) -> None:
    backbone.configure(Conditioning())
    low = load(tiny_card, precision="bf16")
    settings = replace(tiny_card.settings, num_steps=1)
    full, rounded, other = (
        torch.stack(
            [
                torch.tensor(list(image.tobytes())).float()
                for image in each.generate(PROMPTS, seeds=s, settings=settings)
            ]
        )
        for each, s in ((backbone, (3, 4, 5)), (low, (3, 4, 5)), (backbone, (6, 7, 8)))
    )
    assert float((full - rounded).abs().mean()) < 0.25 * float((full - other).abs().mean())
    images, choices = [[sample.image] for sample in dialogues()[: len(QUESTIONS)]], (("yes", "no"), ("one", "two"))
    expected, found = (torch.tensor(each.choice_logprobs(images, QUESTIONS, choices)) for each in (backbone, low))
    # A number of 8 bits is off by at most 0.2%; some layers of such numbers by several times that.
    torch.testing.assert_close(found, expected, rtol=0, atol=0.02 * float(expected.abs().max()))


def test_bf16_halves_matrices_and_leaves_the_autoencoder_and_the_norms_in_float32(tiny_card: BackboneCard) -> None:
    low = load(tiny_card, precision="bf16")
    kinds = {name: weight.dtype for name, weight in low.named_parameters()}
    precise = {name for name, kind in kinds.items() if kind == torch.float32}
    assert {name for name in kinds if ".vae." in name or ".vq." in name} <= precise
    norms = {name for name, module in low.named_modules() if isinstance(module, torch.nn.LayerNorm)}
    assert {f"{name}.weight" for name in norms} & kinds.keys() <= precise
    rest = [weight for name, weight in low.named_parameters() if not (".vae." in name or ".vq." in name)]
    num_low = sum(weight.numel() for weight in rest if weight.dtype == torch.bfloat16)
    assert num_low > 0.95 * sum(weight.numel() for weight in rest)


@pytest.mark.parametrize("precision", ["auto", "fp32"])
def test_a_cpu_reads_weights_in_float32_unless_asked_otherwise(tiny_card: BackboneCard, precision: Precision) -> None:
    assert {weight.dtype for weight in load(tiny_card, precision=precision).parameters()} == {torch.float32}


def test_another_seed_draws_another_image(backbone: Backbone, tiny_card: BackboneCard) -> None:
    settings = replace(tiny_card.settings, num_steps=2)
    first, second = backbone.generate([PROMPTS[0]] * 2, seeds=(0, 1), settings=settings)
    assert first.tobytes() != second.tobytes()


def test_questions_are_answered_alone_as_in_a_batch(backbone: Backbone) -> None:
    images = [[sample.image] for sample in dialogues()[: len(QUESTIONS)]]
    together = backbone.answer(images, QUESTIONS, max_new_tokens=4)
    alone = [
        backbone.answer([image], [question], max_new_tokens=4)[0]
        for image, question in zip(images, QUESTIONS, strict=True)
    ]
    assert together == alone
    assert all(isinstance(answer, str) for answer in together)


def test_every_choice_gets_a_log_probability(backbone: Backbone) -> None:
    images = [[sample.image] for sample in dialogues()[: len(QUESTIONS)]]
    choices = (("yes", "no"), ("A", "B", "C", "D"))
    scored = backbone.choice_logprobs(images, QUESTIONS, choices)
    assert [len(row) for row in scored] == [2, 4]
    assert all(math.isfinite(value) and value <= 0 for row in scored for value in row)


def test_a_checkpoint_brings_back_weights_and_choices(
    backbone: Backbone, tiny_card: BackboneCard, tmp_path: Path
) -> None:
    chosen = Conditioning(attention="paper", hint_slot="prefix", text_dropout=0.25)
    backbone.configure(chosen)
    backbone.save_pretrained(tmp_path / "kept")
    again = load(tiny_card, source=tmp_path / "kept")
    assert again.conditioning == chosen
    before, after = backbone.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_images_are_prepared_alike_in_every_process(backbone: Backbone) -> None:
    picture = drawings()[0].image
    for purpose in ("generation", "understanding"):
        prepare = backbone.image_transform(purpose)
        image = prepare(picture, generator())
        assert torch.equal(image, pickle.loads(pickle.dumps(prepare))(picture, generator()))
        assert image.dtype == torch.float32
        assert image.shape[0] == 3
        assert -1 <= float(image.min()) < float(image.max()) <= 1


def test_missing_weights_are_named_one_by_one(
    card: BackboneCard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEGROS_HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
    missing = family_of(card).locate(card).missing
    assert len(missing) == len(card.weights)
    assert all(file.repo in line.what for file, line in zip(card.weights, missing, strict=True))
    if missing:
        with pytest.raises(PrerequisiteError) as refusal:
            load(card)
        assert refusal.value.problems == missing
