"""Pretrain openuni-tiny on the embedded world, from random weights to a base that draws and answers.

    python -m pretraining.openuni --out DIR

A byte-level tokenizer; the autoencoder, and its decoder by itself; the multimodal language model; all of them frozen
once they are done, as in the real model. Then drawing: queries, connector and image generator learn on scenes that are
encoded once, first in small batches and then in large ones. The language model and the second drawing want a GPU.

Drawing starts with scenes whose captions tell of half of the cells, and puts more weight on cells that hold an object.
Weights that depend on what is drawn make a model believe in too many objects, so they fall to one by the end.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pretraining.drawing import DrawingRecipe, fit_drawing
from pretraining.fitting import Run, run_of
from pretraining.openuni_parts import (
    build_tokenizer,
    pretrain_autoencoder,
    pretrain_understanding,
    start_understanding,
)
from pretraining.scenes import EncodedScenes, encoded_scenes, finish, latent_scale, ordinary, spread, tokenizer_file
from segros_eval.pipeline.catalog import load_catalog
from segros_train.backbones.common.precision import mixed_precision
from segros_train.backbones.openuni.flow import NUM_TRAINING_STEPS, add_noise
from segros_train.backbones.openuni.loading import fresh

if TYPE_CHECKING:
    from segros_train.backbones.openuni.adapter import OpenUni

__all__ = ["PARTS", "main"]

logger = logging.getLogger(__name__)

NUM_SCENES, NUM_SPREAD = 400_000, 60_000
SHIFT = 3.0
"""Shift of the noise levels: which object a cell holds is decided where noise is strong, as sampling has it."""

PARTS = (
    DrawingRecipe(
        name="drawing",
        steps=5000,
        batch_size=64,
        learning_rate=1.5e-3,
        full_share=((0.0, 1.0), (0.2, 0.4), (1.0, 0.1)),
        object_weight=((0.2, 4.0), (1.0, 1.0)),
        kept=0.998,
    ),
    DrawingRecipe(
        name="redrawing",
        steps=4200,
        batch_size=512,
        learning_rate=1.5e-3,
        held_share=0.7,
        full_share=((0.0, 0.4), (0.2, 0.33), (1.0, 0.03)),
        object_weight=((0.0, 4.0), (0.2, 3.1), (1.0, 1.0)),
        kept=0.998,
    ),
)


@torch.no_grad()
def _start_drawing(backbone: OpenUni, rng: torch.Generator) -> None:
    """Draw first weights: linear layers keep the scale of their input, the generator's branches start at zero.

    Queries have the scale of word embeddings, which they stand behind.
    """
    model = backbone.model
    for module in model.transformer.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight, generator=rng)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for block in model.transformer.transformer_blocks:
        block.scale_shift_table[[2, 5]] = 0.0
    time = model.transformer.time_embed
    for layer in (time.emb.timestep_embedder.linear_1, time.emb.timestep_embedder.linear_2):
        nn.init.normal_(layer.weight, std=0.02, generator=rng)
    nn.init.zeros_(time.linear.weight)
    nn.init.zeros_(model.transformer.proj_out.weight)
    nn.init.normal_(model.meta_queries, std=0.3, generator=rng)
    nn.init.xavier_uniform_(model.projector.weight, generator=rng)


def _drawing_loss(
    backbone: OpenUni, batch: EncodedScenes, recipe: DrawingRecipe, step: int, rng: torch.Generator
) -> Tensor:
    """Return the weighted flow loss of a batch at noise levels that favour strong noise."""
    tokenizer, device, size = backbone.tokenizer, backbone.device, len(batch.captions)
    prompts = [
        tokenizer.no_caption() if drop else tokenizer.caption(text)
        for text, drop in zip(batch.captions, recipe.dropped(size, rng), strict=True)
    ]
    uniform = torch.rand(size, generator=rng)
    levels = SHIFT * uniform / (1 + (SHIFT - 1) * uniform)
    timesteps = (levels * NUM_TRAINING_STEPS).ceil().clamp(1, NUM_TRAINING_STEPS).to(device)
    latents = batch.latents.to(device, torch.float32)
    noise = torch.randn(latents.shape, generator=rng).to(device)
    noisy = add_noise(latents, noise, timesteps / NUM_TRAINING_STEPS)
    velocity = backbone.model.velocity(noisy, backbone.conditions(prompts), timesteps)
    error = (velocity.float() - (noise - latents)).square().mean(dim=1).flatten(1)
    return (error * recipe.cell_weights(batch.kinds, step, rng).to(device)).sum()


def _learn(backbone: OpenUni, part: DrawingRecipe, scenes: Sequence[EncodedScenes], run: Run) -> None:
    """Train queries, connector and image generator on one part, in place."""
    recipe = run.of(part)

    def loss(step: int, rng: torch.Generator) -> Tensor:
        batch = recipe.batch(scenes, step, rng)
        with mixed_precision(backbone.device, torch.bfloat16):
            return _drawing_loss(backbone, batch, recipe, step, rng)

    fit_drawing(backbone.model, loss, recipe, run)


def main(arguments: Sequence[str] | None = None) -> None:
    """Make openuni-tiny, as the command line asks."""
    run = run_of(arguments, "Pretrain openuni-tiny.")
    card = load_catalog().backbones["openuni-tiny"]
    vocabulary = card.config.llm.vocab_size
    tokenizer = tokenizer_file(run, lambda: build_tokenizer(vocab_size=vocabulary, num_scenes=run.count(4000)))
    backbone = fresh(card, tokenizer=tokenizer, seed=run.seed)
    start_understanding(backbone.model, torch.Generator().manual_seed(run.seed))
    _start_drawing(backbone, torch.Generator().manual_seed(run.seed))
    backbone.to(run.device)
    pretrain_autoencoder(backbone.model, run)
    scale = latent_scale(lambda images: backbone.model.vae.encode(images.to(run.device), return_dict=False)[0])
    logger.info("latents of unit deviation need the scale %s", scale)
    pretrain_understanding(backbone, run)
    scenes = encoded_scenes(backbone, run, (ordinary, NUM_SCENES), (spread, NUM_SPREAD))
    for part in PARTS:
        _learn(backbone, part, scenes, run)
    finish(backbone, run)


if __name__ == "__main__":
    main()
