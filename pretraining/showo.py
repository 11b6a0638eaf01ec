"""Pretrain show-o-tiny on the embedded world, from random weights to a base that draws and answers.

    python -m pretraining.showo --out DIR

1. a byte-level tokenizer of the world's texts;
2. the tokenizer of images, painting, which is its decoder by itself, and the vision tower, frozen from then on
   (`showo_parts`);
3. language: sentences of the world, next token by next token;
4. the parts of `PARTS`. Reading: crowds of one shape and colour, every cell hidden. Objects: ordinary scenes and
   questions, with most of the loss on the codes of objects, for what a caption does not tell of, the texture of the
   background, is most of the plain loss. Everything: the plain losses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from pretraining.drawing import DrawingRecipe, asked, fit_drawing, visible_and_hidden
from pretraining.fitting import PartRecipe, Run, fit, run_of
from pretraining.scenes import (
    NUM_CELLS,
    EncodedScenes,
    crowd,
    encoded_scenes,
    finish,
    ordinary,
    ordinary_scene,
    pixels,
    tokenizer_file,
)
from pretraining.showo_parts import pretrain_decoder, pretrain_tower, pretrain_vq
from segros_eval.pipeline.catalog import load_catalog
from segros_train.backbones.common.dialogues import IGNORED
from segros_train.backbones.common.instructions import INSTRUCTIONS
from segros_train.backbones.showo.layout import drawing_layout
from segros_train.backbones.showo.loading import fresh
from segros_train.backbones.showo.sampling import num_hidden
from segros_train.data.shapes.captions import corpus
from segros_train.data.shapes.tokenizer import build_tokenizer
from segros_train.masking import cosine_ratio
from segros_train.types import InstructionBatch

if TYPE_CHECKING:
    from segros_train.backbones.showo.adapter import Showo

__all__ = ["PARTS", "main"]

NUM_SCENES, NUM_CROWDS = 15_000, 2_500
CROWD_SHARE = 1 / 6
SENTENCE_TOKENS = 48


LANGUAGE = PartRecipe(steps=80, batch_size=64, learning_rate=2e-3, warmup_steps=20)
_READING = DrawingRecipe(
    name="reading",
    steps=200,
    batch_size=32,
    learning_rate=2e-3,
    held_share=1.0,
    warmup_steps=30,
    weight_decay=0.02,
    full_share=((0.0, 1.0),),
    object_weight=((0.0, 10.0),),
    all_hidden_share=1.0,
    text_dropout=0.0,
)
_OBJECTS = replace(
    _READING,
    name="objects",
    steps=600,
    full_share=((0.0, CROWD_SHARE),),
    all_hidden_share=0.5,
    text_dropout=0.1,
    num_questions=4,
)
PARTS = (
    _READING,
    _OBJECTS,
    replace(
        _OBJECTS,
        name="everything",
        steps=1350,
        learning_rate=1.5e-3,
        held_share=0.0,
        warmup_steps=50,
        object_weight=((0.0, 1.0),),
        all_hidden_share=0.35,
        num_questions=6,
    ),
)


def _learn_language(backbone: Showo, run: Run) -> None:
    """Train the language model on sentences of the world, in place."""
    model, tokenizer, recipe = backbone.model, backbone.tokenizer, run.of(LANGUAGE)
    rows = [tokenizer.sentence(text, limit=SENTENCE_TOKENS) for text in corpus(run.count(2000))]

    def loss(step: int, rng: torch.Generator) -> Tensor:
        chosen = [rows[i] for i in torch.randint(len(rows), (recipe.batch_size,), generator=rng).tolist()]
        width = max(map(len, chosen))
        ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in chosen], device=backbone.device)
        labels = torch.tensor([[*row, *[IGNORED] * (width - len(row))] for row in chosen], device=backbone.device)
        states = model.hidden(model.embed(ids), torch.arange(width, device=backbone.device).unsqueeze(0))
        return model.next_token_nll(states, labels)

    fit("language", model.showo, loss, recipe, run)


def _drawing_loss(
    backbone: Showo, batch: EncodedScenes, recipe: DrawingRecipe, step: int, rng: torch.Generator
) -> Tensor:
    """Return the weighted cross-entropy of the hidden cells' codes over all ids."""
    model, tokenizer, device, size = backbone.model, backbone.tokenizer, backbone.device, len(batch.captions)
    limit, special = model.config.max_caption_tokens + 1, tokenizer.special
    rows = [
        tokenizer.request("" if drop else text, limit=limit)
        for text, drop in zip(batch.captions, recipe.dropped(size, rng), strict=True)
    ]
    width = max(map(len, rows))
    text = torch.tensor([[special["pad"]] * (width - len(row)) + row for row in rows], device=device)
    masked = NUM_CELLS
    if not recipe.all_hidden(rng):
        ratio = cosine_ratio(torch.rand(1, generator=rng)).clamp(min=model.config.min_masking_ratio)
        masked = int(num_hidden(ratio, NUM_CELLS))
    hidden = visible_and_hidden(size, masked, rng)[1].to(device)
    codes = batch.latents.to(device, torch.long).flatten(1) + model.config.image_offset
    shown = codes.scatter(1, hidden, model.config.mask_id)
    image = F.pad(F.pad(shown, (1, 0), value=special["soi"]), (0, 1), value=special["eoi"])
    layout = drawing_layout(text != special["pad"], image.shape[1], offset=limit - width)
    sequence = model.embed(torch.cat([text, image], dim=1))
    states = model.hidden(sequence, layout.positions, mask=layout.mask("native"))[:, layout.image_start + 1 : -1]
    states = states.gather(1, hidden.unsqueeze(-1).expand(-1, -1, states.shape[-1]))
    error = F.cross_entropy(model.logits(states).flatten(0, 1), codes.gather(1, hidden).flatten(), reduction="none")
    weights = recipe.cell_weights(batch.kinds.to(device).gather(1, hidden), step, rng)
    return (error * weights.flatten()).sum()


def _learn(backbone: Showo, part: DrawingRecipe, scenes: Sequence[EncodedScenes], run: Run) -> None:
    """Train everything but the frozen parts on one part, in place."""
    recipe = run.of(part)

    def loss(step: int, rng: torch.Generator) -> Tensor:
        drawing = _drawing_loss(backbone, recipe.batch(scenes, step, rng), recipe, step, rng)
        if not recipe.num_questions:
            return drawing
        indices, turns = asked(recipe.num_questions, len(scenes[0].captions), rng)
        images = pixels([ordinary_scene(index) for index in indices])
        batch = InstructionBatch(images, tuple((turn,) for turn in turns), tuple(map(str, indices)))
        return drawing + recipe.i2t_weight * backbone.i2t_loss(batch)

    fit_drawing(backbone.model, loss, recipe, run)


def main(arguments: Sequence[str] | None = None) -> None:
    """Make show-o-tiny, as the command line asks."""
    run = run_of(arguments, "Pretrain show-o-tiny.")
    card = load_catalog().backbones["show-o-tiny"]
    texts = corpus(run.count(4000)) + ["USER: ", " ASSISTANT: ", *INSTRUCTIONS] * 100
    tokenizer = tokenizer_file(run, lambda: build_tokenizer(texts, vocab_size=card.config.llm.text_vocab_size))
    backbone = fresh(card, tokenizer=tokenizer, seed=run.seed)
    pretrain_vq(backbone.model.vq, run)
    pretrain_decoder(backbone.model.vq, run)
    pretrain_tower(backbone.model, run)
    backbone.to(run.device)
    _learn_language(backbone, run)
    scenes = encoded_scenes(backbone, run, (ordinary, NUM_SCENES), (crowd, NUM_CROWDS))
    for part in PARTS:
        _learn(backbone, part, scenes, run)
    finish(backbone, run)


if __name__ == "__main__":
    main()
