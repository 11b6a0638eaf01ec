"""Pretraining of a tiny Show-o: its tokenizer of images, its vision tower, its parts one after the other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from segros_train.backbones.showo.config import ClipConfig, LanguageConfig, ShowoConfig, VqConfig
from segros_train.backbones.showo.vq import MagvitV2
from segros_train.data.shapes.sets import GenerationSet
from segros_train.data.shapes.world import CELL_PX, COLORS, GRID, OBJECT_NAMES, crowded_scene, sample_scene
from segros_train.errors import PrerequisiteError
from segros_train.pretraining.harmon.pretrain import SCENES_SEED, begin
from segros_train.pretraining.showo import fitting
from segros_train.pretraining.showo.fitting import Fit
from segros_train.pretraining.showo.pretrain import PretrainingRecipe, caption_gain, prepare
from segros_train.pretraining.showo.tower import TowerRecipe, patch_labels
from segros_train.pretraining.showo.vq import NUM_BITS, VqRecipe, bits_of, canonical, pretrain_decoder, pretrain_vq
from segros_train.pretraining.tiny import pixels
from segros_train.types import BackboneCard, GenerationBatch, GenerationSettings, Recipe, Supervision

VQ = VqConfig(
    num_bits=NUM_BITS,
    ch=4,
    encoder_mult=(1, 1, 1, 1, 1),
    encoder_blocks=(1, 1, 1, 1, 1),
    decoder_mult=(1, 1, 1, 1, 1),
    decoder_blocks=(1, 1, 1, 1, 1),
    num_groups=2,
)
CARD = BackboneCard(
    name="micro",
    family="showo",
    title="Micro",
    config=ShowoConfig(
        llm=LanguageConfig(hidden_size=16, intermediate_size=16, num_layers=1, num_heads=2, text_vocab_size=768),
        vq=VQ,
        clip=ClipConfig(
            hidden_size=16, intermediate_size=16, num_layers=2, num_heads=2, image_size_px=96, patch_size_px=12
        ),
        max_caption_tokens=32,
        system_prompt="",
    ),
    world="shapes",
    image_size_px=96,
    settings=GenerationSettings(num_steps=2),
    recipe="none",
    data="shapes",
)
STEP = Recipe(optimizer_steps=1, batch_size=2, i2t_batch_size=1, schedule_steps=10)
RECIPE = PretrainingRecipe(
    vq=VqRecipe(fit=Fit(steps=3, warmup_steps=1, checkpoint_steps=1), batch_size=2, painting=Fit(steps=1)),
    tower=TowerRecipe(fit=Fit(steps=1, warmup_steps=1), batch_size=2),
    language=Fit(steps=1, warmup_steps=1),
    reading=replace(STEP, i2t_weight=0.0, text_dropout=0.0),
    objects=STEP,
    num_scenes=12,
)


def state_of(folder: Path) -> dict[str, torch.Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MagvitV2(VQ)
    pretrain_vq(model, RECIPE.vq, directory=folder, seed=0)
    return model.state_dict()


def test_a_part_trained_in_pieces_equals_one_trained_in_one(tmp_path: Path) -> None:
    whole = state_of(tmp_path / "whole")

    class Killed(Exception):
        """Stand for a killed process."""

    saved = torch.save
    with pytest.MonkeyPatch.context() as patch:

        def save_then_die(content: dict[str, int], path: Path) -> None:
            if content["step"] == 3:
                raise Killed
            saved(content, path)

        patch.setattr(fitting.torch, "save", save_then_die)
        with pytest.raises(Killed):
            state_of(tmp_path / "pieces")
    again = state_of(tmp_path / "pieces")
    assert all(torch.equal(whole[key], again[key]) for key in whole)


def test_painting_changes_the_decoder_and_no_code(tmp_path: Path) -> None:
    model = MagvitV2(VQ).requires_grad_(False)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    pretrain_decoder(model, RECIPE.vq, directory=tmp_path, seed=0)
    moved = {key.split(".")[0] for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert moved == {"decoder"}
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_the_rate_warms_up_and_falls_to_zero() -> None:
    recipe = Fit(steps=100, learning_rate=1e-2, warmup_steps=10)
    rates = [recipe.rate(step) for step in range(100)]
    assert rates[0] < rates[9] <= 1e-2 and rates[-1] < 1e-4
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_taught_bits_tell_every_kind_of_object_apart() -> None:
    scenes = [crowded_scene(0, index) for index in range(200)]
    signs, taught = bits_of(scenes)
    kinds: dict[tuple[float, ...], set[tuple[str, str]]] = {}
    for row, scene in enumerate(scenes):
        for thing in scene.objects:
            kinds.setdefault(tuple(signs[row, :8, thing.row, thing.column].tolist()), set()).add(
                (thing.shape, thing.color)
            )
            assert bool(taught[row, :, thing.row, thing.column].all())
    assert all(len(kind) == 1 for kind in kinds.values())
    assert len(kinds) == len(OBJECT_NAMES) * len(COLORS)
    background = signs[:, 0] < 0
    assert int((~background).sum()) == sum(len(scene.objects) for scene in scenes)
    assert not bool(taught[:, 1:].any(dim=1)[background].any()), "the other bits of a background cell are free"


def test_the_decoder_is_shown_objects_in_the_middle_of_their_cells() -> None:
    scene = crowded_scene(0, 1)
    for thing, before in zip(canonical(scene).objects, scene.objects, strict=True):
        slack = CELL_PX - thing.size_px
        assert thing.offset_px == (slack // 2, slack // 2) and abs(thing.size_px - before.size_px) <= 1
        assert replace(thing, size_px=before.size_px, offset_px=before.offset_px) == before


def test_a_patch_is_labelled_by_the_cell_around_its_centre() -> None:
    scene = sample_scene(0, 3)
    side = 8
    shapes, colors = patch_labels([scene], side=side)
    thing = scene.objects[0]
    inside = [
        row * side + column
        for row in range(side)
        for column in range(side)
        if (row * 12 + 6) // CELL_PX == thing.row and (column * 12 + 6) // CELL_PX == thing.column
    ]
    assert inside
    assert shapes[0, inside].tolist() == [OBJECT_NAMES.index(thing.shape)] * len(inside)
    assert colors[0, inside].tolist() == [tuple(COLORS).index(thing.color)] * len(inside)
    assert int((shapes < len(OBJECT_NAMES)).sum()) <= 4 * len(scene.objects)


def test_a_prepared_backbone_has_all_parts_and_takes_the_loss_of_images_from_its_codes(tmp_path: Path) -> None:
    backbone = prepare(CARD, directory=tmp_path, seed=0, recipe=RECIPE).eval()
    again = prepare(CARD, directory=tmp_path, seed=0, recipe=RECIPE)
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in backbone.state_dict().items())
    assert backbone.code_weights is None
    assert not any(p.requires_grad for part in (backbone.model.vq, backbone.model.clip) for p in part.parameters())
    samples = [GenerationSet(SCENES_SEED)[index] for index in range(2)]
    batch = GenerationBatch(
        pixels([sample_scene(SCENES_SEED, index) for index in range(2)]),
        tuple(sample.caption for sample in samples),
        tuple(sample.item_id for sample in samples),
    )
    supervision = Supervision(caption=True, masked=torch.ones(2, GRID * GRID, dtype=torch.bool))
    looked_up = backbone.t2i_loss(batch, supervision, torch.Generator().manual_seed(1))
    backbone.latent_table = None
    assert torch.equal(looked_up, backbone.t2i_loss(batch, supervision, torch.Generator().manual_seed(1)))


def test_captions_gain_nothing_where_they_are_not_read(tmp_path: Path) -> None:
    backbone = prepare(CARD, directory=tmp_path, seed=0, recipe=RECIPE)
    with torch.no_grad():
        for layer in backbone.model.showo.model.layers:
            layer.self_attn.dense.weight.zero_()
    assert caption_gain(backbone, num_scenes=8) == pytest.approx(0.0, abs=1e-6)
    assert backbone.code_weights is None and backbone.latent_table is not None


def test_each_family_begins_its_own_pretraining(tmp_path: Path) -> None:
    with pytest.raises(PrerequisiteError, match="only a Show-o of the embedded world"):
        begin(replace(CARD, world="photo"), directory=tmp_path, seed=0)
    with pytest.raises(PrerequisiteError, match="only Harmon backbones of the embedded world"):
        begin(replace(CARD, family="harmon", world="photo"), directory=tmp_path, seed=0)
