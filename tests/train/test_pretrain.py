"""Pretraining of a tiny Harmon: its tokenizer, its autoencoder, its encoded scenes."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from segros_train.backbones.harmon.config import DiffusionConfig, HarmonConfig, LanguageConfig, MarConfig, VaeConfig
from segros_train.data.shapes.captions import corpus
from segros_train.data.shapes.sets import GenerationSet
from segros_train.data.shapes.world import Tag
from segros_train.errors import PrerequisiteError
from segros_train.methods.sft import SFT
from segros_train.pretraining.encoded import NUM_KINDS, EncodedScenes, encode_scenes, scene_of
from segros_train.pretraining.harmon.autoencoder import (
    AutoencoderRecipe,
    latent_scale,
    pretrain_autoencoder,
    training_images,
)
from segros_train.pretraining.harmon.joint import JointRecipe, drawing_losses
from segros_train.pretraining.harmon.pretrain import SCENES_SEED, Part, prepare
from segros_train.pretraining.tiny import build_tokenizer
from segros_train.types import BackboneCard, GenerationBatch, GenerationSettings, Recipe, Supervision

VAE = VaeConfig(embed_dim=4, ch=8, ch_mult=(1, 1, 1, 1, 1), num_res_blocks=1, num_groups=4)
RECIPE = AutoencoderRecipe(
    steps=2, ordinary_steps=1, refining_steps=2, object_steps=2, batch_size=1, warmup_steps=1, checkpoint_steps=1
)
PART_RECIPE = Recipe(optimizer_steps=1, batch_size=2, i2t_weight=0.1, i2t_batch_size=1, schedule_steps=10)
PARTS = (
    Part("reading", SFT(all_hidden_share=1.0), PART_RECIPE, tags=("colors",)),
    Part("telling", SFT(num_untold=2), PART_RECIPE, spread_every=3),
)
JOINT = JointRecipe(
    steps=3,
    batch_size=4,
    learning_rate=1e-3,
    warmup_steps=1,
    checkpoint_steps=1,
    num_questions=2,
    num_scenes=6,
    num_spread=3,
    spread_shares=(0.5, 0.5),
)
CARD = BackboneCard(
    name="micro",
    family="harmon",
    title="Micro",
    config=HarmonConfig(
        llm=LanguageConfig(
            hidden_size=16, intermediate_size=16, num_layers=1, num_heads=2, num_kv_heads=1, vocab_size=768
        ),
        mar=MarConfig(
            encoder_width=16,
            encoder_depth=1,
            encoder_heads=2,
            decoder_width=16,
            decoder_depth=1,
            decoder_heads=2,
            diffusion=DiffusionConfig(depth=1, width=16, num_sampling_steps=2, batch_mul=1),
            base_grid=(6, 6),
            buffer_size=2,
            num_classes=1,
        ),
        vae=VAE,
        vae_scale=1.0,
    ),
    world="shapes",
    image_size_px=96,
    settings=GenerationSettings(num_steps=2),
    recipe="harmon-tiny",
    data="shapes",
)


def _states(folder: Path, recipe: AutoencoderRecipe) -> dict[str, torch.Tensor]:
    return pretrain_autoencoder(VAE, recipe, directory=folder).state_dict()


def test_an_autoencoder_trained_in_pieces_equals_one_trained_in_one(tmp_path: Path) -> None:
    whole = _states(tmp_path / "whole", RECIPE)
    state = tmp_path / "pieces" / "vae.pt"

    class Killed(Exception):
        """Stand for a killed process."""

    saved = torch.save
    with pytest.MonkeyPatch.context() as patch:

        def save_then_die(content: dict[str, object], path: Path) -> None:
            if content["step"] == 4:
                raise Killed
            saved(content, path)

        patch.setattr("segros_train.pretraining.harmon.autoencoder.torch.save", save_then_die)
        with pytest.raises(Killed):
            _states(state.parent, RECIPE)
    assert torch.load(state, weights_only=True)["step"] == 3
    again = _states(state.parent, RECIPE)
    assert all(torch.equal(whole[key], again[key]) for key in whole)


def test_the_last_part_of_the_autoencoder_counts_the_background_lightly() -> None:
    recipe = replace(RECIPE, background_weight=0.25)
    for step in range(6):
        images, weights = training_images(recipe, step, seed=0)
        if step < 4:
            assert weights == 1.0
        else:
            assert isinstance(weights, torch.Tensor) and set(weights.unique().tolist()) == {0.25, 1.0}
            painted = (images.amax(1, keepdim=True) - images.amin(1, keepdim=True)) > 0.55
            assert bool((weights[painted] == 1.0).all()) and painted.any()


def test_the_learning_rate_of_each_part_warms_up_and_falls_to_zero() -> None:
    recipe = AutoencoderRecipe(steps=100, refining_steps=50, object_steps=40, warmup_steps=10)
    for start, length in ((0, 100), (100, 50), (150, 40)):
        rates = [recipe.rate(start + step) for step in range(length)]
        assert rates[0] < rates[9] and max(rates) <= recipe.learning_rate and rates[-1] < 0.01 * recipe.learning_rate
    with pytest.raises(ValueError, match="ends before step 190"):
        recipe.rate(190)


def test_the_tokenizer_writes_the_world_in_whole_words_and_reads_back_any_text() -> None:
    tokenizer = build_tokenizer(corpus(1500), vocab_size=768)
    words = "a photo of two hearts"
    assert len(tokenizer.encode(words).ids) == len(words.split())
    odd = "Ünïcode, 漢字\n\tand <tags>"
    assert tokenizer.decode(tokenizer.encode(odd).ids) == odd


def test_a_prepared_backbone_takes_the_same_loss_from_encoded_scenes_as_from_images(tmp_path: Path) -> None:
    backbone = prepare(CARD, directory=tmp_path, seed=0, recipe=RECIPE, num_scenes=12, parts=PARTS, joint=JOINT).eval()
    transform = backbone.image_transform("generation")
    samples = [GenerationSet(SCENES_SEED)[index] for index in range(2)]
    batch = GenerationBatch(
        torch.stack([transform(sample.image, torch.Generator().manual_seed(0)) for sample in samples]),
        tuple(sample.caption for sample in samples),
        tuple(sample.item_id for sample in samples),
    )
    supervision = Supervision(caption=True, masked=torch.ones(2, 36, dtype=torch.bool))
    looked_up = backbone.t2i_loss(batch, supervision, torch.Generator().manual_seed(1))
    backbone.latent_table = None
    encoded = backbone.t2i_loss(batch, supervision, torch.Generator().manual_seed(1))
    torch.testing.assert_close(looked_up, encoded, rtol=1e-5, atol=1e-6)


def test_a_preparation_that_is_done_gives_the_same_weights_again(tmp_path: Path) -> None:
    first, again = (
        prepare(CARD, directory=tmp_path, seed=0, recipe=RECIPE, num_scenes=12, parts=PARTS, joint=JOINT).state_dict()
        for _ in range(2)
    )
    assert all(torch.equal(first[key], again[key]) for key in first)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("prepared")
    return prepare(CARD, directory=folder, seed=0, recipe=RECIPE, num_scenes=12, parts=PARTS, joint=JOINT)


def encoded(backbone, size: int, *tags: Tag):
    scenes = GenerationSet(SCENES_SEED, size, tags, drawn=False)
    return encode_scenes(backbone.model, partial(scene_of, scenes), size)


class Recording(torch.nn.Linear):
    """A classifier that keeps what it reads."""

    def __init__(self) -> None:
        super().__init__(CARD.config.mar.decoder_width, NUM_KINDS)
        self.read: list[torch.Tensor] = []

    def forward(self, conditions: torch.Tensor) -> torch.Tensor:
        self.read.append(conditions.detach())
        return super().forward(conditions)


def test_the_classifier_learns_and_its_loss_teaches_what_reads_the_caption_but_not_the_autoencoder(prepared) -> None:
    backbone = copy.deepcopy(prepared)
    model, batch = backbone.model, encoded(backbone, 4, "colors")
    classifier = Recording()
    optimizer = torch.optim.Adam([*classifier.parameters(), *model.mar.decoder_blocks.parameters()], lr=3e-2)
    losses = []
    for _ in range(30):
        rng = torch.Generator().manual_seed(0)
        _, kind = drawing_losses(backbone, classifier, batch, rng, num_visible=5, object_weight=4.0, dropout=0.0)
        model.zero_grad()
        optimizer.zero_grad()
        kind.backward()
        optimizer.step()
        losses.append(kind.item())
    assert losses[-1] < 0.3 * losses[0]
    words = backbone.tokenizer.caption(batch.captions[0])
    told = [token for token, is_told in zip(words.ids, words.caption, strict=True) if is_told]
    assert bool((model.llm.model.embed_tokens.weight.grad[told].abs().amax(1) > 0).all())
    assert all(parameter.grad is None for parameter in model.vae.parameters())


def test_the_joint_part_takes_its_losses_on_the_cells_that_the_model_does_not_see_and_on_all_of_them(prepared) -> None:
    (scene,) = (encoded(prepared, 1),)
    num_visible = 30

    def seen_by(batch: EncodedScenes) -> tuple[float, torch.Tensor]:
        classifier = Recording()
        with torch.no_grad():
            for parameter in classifier.parameters():
                parameter.copy_(torch.linspace(-1, 1, parameter.numel()).view_as(parameter))
            rng = torch.Generator().manual_seed(3)
            arguments = {"num_visible": num_visible, "object_weight": 1.0, "dropout": 0.0}
            _, kind = drawing_losses(prepared, classifier, batch, rng, **arguments)
        return kind.item(), classifier.read[0]

    loss, conditions = seen_by(scene)
    assert len(conditions) == 36 - num_visible
    targets, visible = set(), set()
    for cell in range(36):
        kinds, latents = scene.kinds.clone(), scene.latents.clone()
        kinds[0, cell] = (kinds[0, cell] + 7) % NUM_KINDS
        latents.flatten(1, 2)[0, cell] += 1.0
        if seen_by(replace(scene, kinds=kinds))[0] != loss:
            targets.add(cell)
        if not torch.equal(seen_by(replace(scene, latents=latents))[1], conditions):
            visible.add(cell)
    assert not targets & visible and targets | visible == set(range(36)) and len(visible) == num_visible


def test_the_latent_scale_gives_latents_of_unit_deviation(tmp_path: Path) -> None:
    model = pretrain_autoencoder(VAE, RECIPE, directory=tmp_path)
    with torch.no_grad():
        for parameter in model.quant_conv.parameters():
            parameter.mul_(3.0)
    tripled = latent_scale(model, num_scenes=64)
    with torch.no_grad():
        for parameter in model.quant_conv.parameters():
            parameter.div_(3.0)
    assert latent_scale(model, num_scenes=64) == pytest.approx(3 * tripled, rel=1e-2)


def test_a_backbone_of_photographs_is_not_pretrained_here(tmp_path: Path) -> None:
    with pytest.raises(PrerequisiteError, match="cannot be pretrained here"):
        prepare(replace(CARD, world="photo"), directory=tmp_path, seed=0)
