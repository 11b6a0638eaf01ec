"""Tiny backbones on a CUDA device: the losses of the CPU, pictures and answers. Run by `nox -s gpu`."""

import pytest
import torch
from steps import draws_of

from segros_eval.pipeline.catalog import load_catalog
from segros_train.backbone import Backbone
from segros_train.backbones.loading import load
from segros_train.data.shapes.sets import GenerationSet, InstructionSet
from segros_train.methods.sft import SFT
from segros_train.types import GenerationBatch, InstructionBatch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
DEVICE = "cuda"
NAMES = ("harmon-tiny", "openuni-tiny", "show-o-tiny")


@pytest.fixture(scope="module", params=NAMES)
def pair(request: pytest.FixtureRequest) -> tuple[Backbone, Backbone]:
    card = load_catalog().backbones[request.param]
    return load(card), load(card, device=DEVICE)


def drawn(backbone: Backbone, device: str) -> GenerationBatch:
    prepare = backbone.image_transform("generation")
    samples = [GenerationSet(5)[index] for index in range(4)]
    pixels = torch.stack([prepare(sample.image, torch.Generator().manual_seed(0)) for sample in samples])
    captions, ids = ([getattr(sample, name) for sample in samples] for name in ("caption", "item_id"))
    return GenerationBatch(pixels.to(device), tuple(captions), tuple(ids))


def test_the_loss_of_drawing_is_the_same_under_the_same_draws(pair: tuple[Backbone, Backbone]) -> None:
    losses = []
    for backbone, device in zip(pair, ("cpu", DEVICE), strict=True):
        batch = drawn(backbone, device)
        with torch.no_grad():
            encoded, draws = backbone.encode(batch), draws_of(4)
            supervision = SFT().supervise(backbone.embed(encoded), backbone.masking_ratio(draws), draws)
            losses.append(float(backbone.t2i_loss(encoded, supervision, draws)))
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


def test_the_loss_of_answering_is_the_same(pair: tuple[Backbone, Backbone]) -> None:
    losses = []
    for backbone, device in zip(pair, ("cpu", DEVICE), strict=True):
        prepare = backbone.image_transform("understanding")
        samples = [InstructionSet(5)[index] for index in range(4)]
        pixels = torch.stack([prepare(sample.image) for sample in samples])
        dialogues, ids = tuple(s.dialogue for s in samples), tuple(s.item_id for s in samples)
        with torch.no_grad():
            losses.append(float(backbone.i2t_loss(InstructionBatch(pixels.to(device), dialogues, ids))))
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


def test_an_image_is_drawn_and_its_questions_are_answered(pair: tuple[Backbone, Backbone]) -> None:
    _, backbone = pair
    (image,) = backbone.generate(["a photo of a red circle"], seeds=[0], settings=backbone.card.settings)
    assert image.size == (96, 96)
    (answer,) = backbone.answer([[image]], ["Is there a circle in the image?"], max_new_tokens=4)
    assert answer in ("Yes", "No")
