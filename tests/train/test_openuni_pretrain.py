"""Pretraining of a tiny OpenUni at micro size: its parts, going on after a stop, and what crowds and weights do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from openuni_tiny import CARD, CONFIG
from torch import nn

from segros_train.backbones.openuni.prompts import SYSTEM
from segros_train.data.shapes.captions import caption, corpus
from segros_train.data.shapes.world import COLORS, OBJECT_NAMES, sample_scene
from segros_train.errors import PrerequisiteError
from segros_train.pretraining.encoded import encode_scenes
from segros_train.pretraining.fitting import PartRecipe, fit
from segros_train.pretraining.openuni import pretrain
from segros_train.pretraining.openuni.parts import UnderstandingRecipe, build_tokenizer, told_dialogue
from segros_train.pretraining.openuni.pretrain import DrawingRecipe, drawing_loss, prepare

PART = PartRecipe(steps=2, batch_size=2, learning_rate=1e-3, warmup_steps=1, checkpoint_steps=1)
DRAWING = DrawingRecipe(
    steps=3, batch_size=4, learning_rate=1e-3, warmup_steps=1, checkpoint_steps=1, num_scenes=6, num_crowds=5
)
UNDERSTANDING = UnderstandingRecipe(
    steps=2, batch_size=2, learning_rate=1e-3, warmup_steps=1, checkpoint_steps=1, num_texts=1
)


def prepared(folder: Path):
    return prepare(
        CARD,
        directory=folder,
        seed=0,
        autoencoder=PART,
        decoder=PART,
        understanding=UNDERSTANDING,
        drawing=DRAWING,
        redrawing=replace(DRAWING, has_spread=True),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pretrained")


@pytest.fixture(scope="module")
def backbone(folder: Path):
    return prepared(folder)


def test_what_was_prepared_is_taken_up_again_unchanged(backbone, folder: Path) -> None:
    again = prepared(folder).state_dict()
    assert all(torch.equal(value, again[key]) for key, value in backbone.state_dict().items())


def test_every_part_is_trained_and_the_frozen_ones_are_frozen_after(backbone) -> None:
    model = backbone.model
    assert not any(p.requires_grad for part in (model.lmm, model.vae) for p in part.parameters())
    assert all(p.requires_grad for part in (model.transformer, model.connector) for p in part.parameters())
    assert float(model.transformer.proj_out.weight.abs().max()) > 0


def test_a_prepared_model_draws_and_answers(backbone) -> None:
    (image,) = backbone.generate(["a photo of a red circle"], seeds=[0], settings=CARD.settings)
    assert image.size == (96, 96)
    assert isinstance(backbone.answer([[image]], ["Is it red?"], max_new_tokens=3)[0], str)


class Killed(Exception):
    """Stand for a killed process."""


def fitted(path: Path, *, dies_at: int | None = None) -> nn.Linear:
    torch.manual_seed(0)
    layer = nn.Linear(3, 1)

    def loss(step: int, rng: torch.Generator) -> torch.Tensor:
        if step == dies_at:
            raise Killed
        return layer(torch.randn(4, 3, generator=rng)).square().mean()

    recipe = PartRecipe(steps=6, batch_size=4, learning_rate=1e-2, warmup_steps=2, checkpoint_steps=2)
    fit(layer, list(layer.parameters()), loss, recipe, path=path, seed=1)
    return layer


def test_a_part_trained_in_pieces_equals_one_trained_in_one(tmp_path: Path) -> None:
    whole = fitted(tmp_path / "whole.pt")
    with pytest.raises(Killed):
        fitted(tmp_path / "pieces.pt", dies_at=3)
    assert torch.load(tmp_path / "pieces.pt", weights_only=True)["step"] == 2
    pieces = fitted(tmp_path / "pieces.pt")
    assert torch.equal(whole.weight, pieces.weight)


def test_the_rate_of_a_part_warms_up_and_falls_to_zero() -> None:
    recipe = PartRecipe(steps=100, batch_size=1, learning_rate=1.0, warmup_steps=10)
    rates = [recipe.rate(step) for step in range(100)]
    assert rates[0] < rates[9] and max(rates) <= 1.0 and rates[-1] < 0.01


def test_a_held_rate_stays_at_its_peak_and_then_falls_to_zero() -> None:
    recipe = PartRecipe(steps=100, batch_size=1, learning_rate=1.0, warmup_steps=10, held_share=0.6)
    rates = [recipe.rate(step) for step in range(100)]
    assert set(rates[9:61]) == {1.0} and sorted(rates[60:], reverse=True) == rates[60:] and rates[-1] < 0.01


def test_a_dialogue_about_a_caption_begins_as_the_request_for_its_image_and_supervises_the_answer(backbone) -> None:
    tokenizer = backbone.tokenizer
    for index in range(20):
        scene = sample_scene(3, index)
        dialogue = told_dialogue(tokenizer, scene, np.random.default_rng(index))
        words = tokenizer.text(dialogue.ids)
        assert words.startswith(f"user\nGenerate an image: {caption(scene)}\n")
        answer = tokenizer.text([label for label in dialogue.labels if label != -100])
        assert answer and words.endswith(answer)


def test_shares_and_weights_go_from_the_first_value_to_the_last() -> None:
    recipe = replace(DRAWING, steps=100)
    assert [recipe.at((1.0, 0.4, 0.1), step) for step in (0, 20, 100)] == pytest.approx([1.0, 0.4, 0.1])
    assert recipe.at((1.0, 0.4, 0.1), 60) == pytest.approx(0.25)


def test_the_tokenizer_has_words_for_the_world_and_one_for_the_system_message() -> None:
    tokenizer = build_tokenizer(vocab_size=640)
    assert tokenizer.get_vocab_size() == 640
    assert len(tokenizer.encode(SYSTEM).ids) == 1
    words = "a photo of two hearts"
    assert len(tokenizer.encode(words).ids) == len(words.split())
    texts = [*corpus(50), "Ünïcode, 漢字\n\tand <tags>"]
    assert all(tokenizer.decode(tokenizer.encode(text).ids) == text for text in texts)


def test_a_crowds_caption_tells_what_stands_where() -> None:
    kinds = set()
    for index in range(60):
        scene, text = pretrain._crowd(index)
        shapes = {thing.shape for thing in scene.objects}
        singular = text.replace("crosses", "cross")
        assert all(shape in singular for shape in shapes)
        link = next((word for word in ("left of", "right of", "above", "below") if f" {word} " in text), None)
        kinds.add(link or ("and" if " and " in text else "one"))
        if link is not None and len(shapes) == 2:
            first = next(shape for shape in shapes if shape in singular.split(link)[0])
            axis = "column" if link in ("left of", "right of") else "row"
            near = [getattr(thing, axis) for thing in scene.objects if thing.shape == first]
            assert all((place < 3) == (link in ("left of", "above")) for place in near)
    assert kinds == {"one", "and", "left of", "right of", "above", "below"}


def test_scenes_are_encoded_with_the_cells_that_hold_objects(backbone) -> None:
    scenes = encode_scenes(backbone.model, pretrain._ordinary, 5)
    assert scenes.latents.shape == (5, CONFIG.autoencoder.latent_channels, 6, 6)
    for index, cells in enumerate(scenes.kinds):
        scene, text = pretrain._ordinary(index)
        assert {(int(i) // 6, int(i) % 6) for i in cells.nonzero()} == {(t.row, t.column) for t in scene.objects}
        for thing in scene.objects:
            shape, color = divmod(int(cells[thing.row * 6 + thing.column]) - 1, 10)
            assert (OBJECT_NAMES[shape], tuple(COLORS)[color]) == (thing.shape, thing.color)
        assert scenes.captions[index] == text


def test_more_weight_on_objects_moves_the_loss_towards_theirs(backbone) -> None:
    rows = encode_scenes(backbone.model, pretrain._ordinary, 4)
    with torch.no_grad():
        losses = [
            float(drawing_loss(backbone, rows, torch.Generator().manual_seed(0), object_weight=weight, dropout=0.0))
            for weight in (1.0, 4.0, 1e6)
        ]
    assert losses[0] < losses[1] < losses[2] or losses[0] > losses[1] > losses[2]


def test_a_backbone_of_photographs_is_not_pretrained_here(tmp_path: Path) -> None:
    with pytest.raises(PrerequisiteError, match="cannot be pretrained here"):
        prepare(replace(CARD, world="photo"), directory=tmp_path, seed=0)
