"""Pretrain harmon-tiny on the embedded world, from random weights to a base that draws and answers.

    python -m pretraining.harmon --out DIR

A byte-level tokenizer comes first, then the autoencoder, frozen from then on, then the unified model in the parts of
`PARTS`, on scenes that are encoded once. The last part, in batches of 512, wants a GPU.

In that part a linear classifier reads the vectors through which the diffusion head hears of the caption, and names what
each hidden cell shows; its loss goes through the whole model, and it is dropped at the end. The diffusion loss alone
says little of what those vectors lack: an exchanged caption adds a tenth to it on objects. Without the classifier 6,700
updates of 512 scenes left GenEval-on-shapes at 48; with it 16,100 more raised it to 75.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretraining.drawing import DrawingRecipe, asked, fit_drawing, visible_and_hidden
from pretraining.fitting import Run, run_of
from pretraining.harmon_autoencoder import pretrain_autoencoder
from pretraining.scenes import (
    NUM_CELLS,
    NUM_KINDS,
    EncodedScenes,
    encoded_scenes,
    finish,
    latent_scale,
    ordinary,
    spread,
    tokenizer_file,
)
from segros_eval.pipeline.catalog import load_catalog
from segros_train.backbones.common.dialogues import labels_of
from segros_train.backbones.common.instructions import INSTRUCTIONS
from segros_train.backbones.common.precision import mixed_precision
from segros_train.backbones.harmon.answering import next_token_loss, read
from segros_train.backbones.harmon.diffusion import draw_timesteps
from segros_train.backbones.harmon.loading import fresh
from segros_train.backbones.harmon.mar import gather_rows
from segros_train.backbones.harmon.model import scale_gradient
from segros_train.backbones.harmon.prompts import NO_CAPTION
from segros_train.data.shapes.captions import corpus
from segros_train.data.shapes.tokenizer import build_tokenizer
from segros_train.data.shapes.world import TAGS

if TYPE_CHECKING:
    from segros_train.backbones.harmon.adapter import Harmon
    from segros_train.data.shapes.world import Tag
    from segros_train.types import Turn

__all__ = ["PARTS", "main"]

logger = logging.getLogger(__name__)

NUM_SCENES, NUM_SPREAD = 500_000, 60_000
IMAGE_GRADIENT = 0.5
"""Factor of the gradient that flows from questions into encodings of images."""


_COLORS: tuple[Tag, ...] = ("colors", "color_attr", "colors", "color_attr", "counting", "position")
_HARDER_TWICE: tuple[Tag, ...] = (*TAGS, "colors", "color_attr", "counting", "position")
_TWO_THINGS: tuple[Tag, ...] = (
    *("color_attr", "position", "two_object", "colors", "color_attr"),
    *("position", "counting", "single_object", "color_attr", "position"),
)
_SMALL = DrawingRecipe(
    name="reading",
    steps=400,
    batch_size=64,
    learning_rate=2e-3,
    held_share=1.0,
    warmup_steps=40,
    weight_decay=0.02,
    tags=("colors",),
    full_share=((0.0, 1.0),),
    all_hidden_share=1.0,
    text_dropout=0.0,
)
_TELLING = replace(
    _SMALL,
    name="telling",
    steps=2500,
    learning_rate=1.5e-3,
    tags=TAGS,
    full_share=((0.0, 0.5),),
    num_background_cells=4,
    all_hidden_share=0.5,
    text_dropout=0.1,
)
_ASKED = replace(
    _TELLING,
    learning_rate=1.2e-3,
    full_share=((0.0, 0.0),),
    num_background_cells=None,
    all_hidden_share=0.35,
    num_questions=16,
    i2t_weight=0.1,
)
_LATE = replace(_ASKED, learning_rate=1.1e-3, all_hidden_share=0.15)
PARTS = (
    _SMALL,
    _TELLING,
    replace(_ASKED, name="joint", steps=4000, held_share=0.0, warmup_steps=100),
    replace(_TELLING, name="coloring", steps=2000, tags=_COLORS),
    replace(_ASKED, name="binding", steps=1500, full_share=((0.0, 0.125),), num_background_cells=16),
    replace(_ASKED, name="settling", steps=2200, held_share=0.0, num_background_cells=16),
    replace(_ASKED, name="balancing", steps=2250, tags=_HARDER_TWICE, full_share=((0.0, 1 / 6),), num_questions=0),
    replace(_LATE, name="answering", steps=750, tags=_HARDER_TWICE),
    replace(_LATE, name="relating", steps=2200, tags=_TWO_THINGS, num_background_cells=6),
    replace(_LATE, name="ending", steps=2200, held_share=0.0, tags=_TWO_THINGS),
    DrawingRecipe(
        name="naming",
        steps=16_000,
        batch_size=512,
        learning_rate=1.5e-3,
        held_share=0.6,
        warmup_steps=300,
        weight_decay=0.02,
        full_share=((0.0, 0.15), (1.0, 0.02)),
        object_weight=((0.0, 4.0), (0.7, 1.0)),
        kind_weight=((0.0, 0.5), (1.0, 0.1)),
        all_hidden_share=0.2,
        num_questions=256,
        i2t_weight=0.25,
        kept=0.999,
    ),
)


def _drawing_loss(
    backbone: Harmon,
    classifier: nn.Module,
    batch: EncodedScenes,
    recipe: DrawingRecipe,
    step: int,
    rng: torch.Generator,
) -> Tensor:
    """Return the weighted diffusion loss of the hidden cells, and the classifier's, together."""
    model, tokenizer, device = backbone.model, backbone.tokenizer, backbone.device
    limit, size = model.config.max_caption_tokens, len(batch.captions)
    prompts = tokenizer.pad(
        [
            tokenizer.request(NO_CAPTION, limit=limit) if drop else tokenizer.caption(text, limit=limit)
            for text, drop in zip(batch.captions, recipe.dropped(size, rng), strict=True)
        ],
        device=device,
    )
    num_hidden = NUM_CELLS if recipe.all_hidden(rng) else 1 + int(torch.randint(NUM_CELLS, (), generator=rng))
    visible, hidden = (cells.to(device) for cells in visible_and_hidden(size, num_hidden, rng))
    latents = batch.latents.to(device, torch.float32)
    conditions = model.conditions(model.llm.model.embed_tokens(prompts.ids), prompts.valid, latents, visible)
    conditions = gather_rows(conditions, hidden).flatten(0, 1)
    cells = gather_rows(latents.flatten(1, 2), hidden).flatten(0, 1)
    shown = batch.kinds.to(device).long().gather(1, hidden)
    weights = recipe.cell_weights(shown, step, rng).flatten()
    timesteps = draw_timesteps(model.config.mar.diffusion, len(cells), rng)
    noise = torch.randn(*timesteps.shape, cells.shape[1], generator=rng)
    rows = model.mar.diffloss.row_losses(conditions, cells, timesteps=timesteps.to(device), noise=noise.to(device))
    error = rows.total.view(len(timesteps), -1).mean(dim=0)
    naming = F.cross_entropy(classifier(conditions).float(), shown.flatten(), reduction="none")
    return ((error + recipe.at(recipe.kind_weight, step) * naming) * weights).sum()


def _answering_loss(backbone: Harmon, latents: Tensor, turns: Sequence[Turn]) -> Tensor:
    """Return the loss of the answers to one question per scene, whose latents are [B, h, w, C]."""
    model, tokenizer = backbone.model, backbone.tokenizer
    latents = latents.to(backbone.device, torch.float32)
    positions = model.mar.positions((latents.shape[1], latents.shape[2]))
    encoded = model.mar.encode(latents.flatten(1, 2), None, positions)
    image = scale_gradient(model.to_language(encoded), IMAGE_GRADIENT)
    dialogues = [tokenizer.dialogue((turn,), limit=model.config.max_dialogue_tokens) for turn in turns]
    return next_token_loss(model, read(model, image, dialogues), labels_of(dialogues, image))


def _learn(backbone: Harmon, part: DrawingRecipe, scenes: Sequence[EncodedScenes], run: Run) -> None:
    """Train everything but the autoencoder on one part, in place."""
    recipe, device = run.of(part), backbone.device
    num_questions = run.count(recipe.num_questions)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.seed)
        classifier = nn.Linear(backbone.model.config.mar.decoder_width, NUM_KINDS).to(device)

    def loss(step: int, rng: torch.Generator) -> Tensor:
        batch = recipe.batch(scenes, step, rng)
        with mixed_precision(device, torch.bfloat16):
            drawing = _drawing_loss(backbone, classifier, batch, recipe, step, rng)
            if not num_questions:
                return drawing
            indices, turns = asked(num_questions, len(scenes[0].captions), rng)
            return drawing + recipe.i2t_weight * _answering_loss(backbone, scenes[0].rows(indices).latents, turns)

    fit_drawing(nn.ModuleDict({"model": backbone.model, "classifier": classifier}), loss, recipe, run)


def main(arguments: Sequence[str] | None = None) -> None:
    """Make harmon-tiny, as the command line asks."""
    run = run_of(arguments, "Pretrain harmon-tiny.")
    card = load_catalog().backbones["harmon-tiny"]
    template = ["user\n", "assistant\n", "Generate an image: ", "Generate an image.", *INSTRUCTIONS]
    texts = corpus(run.count(4000)) + template * 100
    tokenizer = tokenizer_file(run, lambda: build_tokenizer(texts, vocab_size=card.config.llm.vocab_size))
    backbone = fresh(card, tokenizer=tokenizer, seed=run.seed)
    pretrain_autoencoder(backbone.model.vae, run)
    logger.info("latents of unit deviation need vae_scale %s", latent_scale(backbone.model.vae.encode))
    backbone.to(run.device)
    scenes = encoded_scenes(backbone, run, (ordinary, NUM_SCENES), (spread, NUM_SPREAD))
    for part in PARTS:
        _learn(backbone, part, scenes, run)
    finish(backbone, run)


if __name__ == "__main__":
    main()
