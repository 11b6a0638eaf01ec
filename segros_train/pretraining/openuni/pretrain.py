"""Pretrain a tiny OpenUni on the embedded world, from random weights to a base that draws and answers.

Each part is kept in the run folder so that a stopped run goes on: a byte-level tokenizer; the autoencoder, and its
decoder by itself; the multimodal language model; drawing, where queries, connector and image generator learn on latents
that were encoded once, first in small batches and then in large ones; and a last stretch of the ordinary loop under the
native loss. What comes before drawing is frozen once it is done, as it is in the real model. The language model and the
second drawing want a GPU.

A caption of the world tells of one to four cells in 36, so that almost all of a plain loss is about the background.
Drawing therefore starts with crowds, whose captions tell of half of the cells: crowds of one kind, of two kinds, and
of two kinds that stand apart. And it puts more weight on cells that hold an object. Weights that depend on what is
drawn make a model believe in too many objects, so they fall to one by the end.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from segros_train.backbones.common.precision import mixed_precision
from segros_train.backbones.openuni.flow import NUM_TRAINING_STEPS, add_noise, masked_velocity_error
from segros_train.backbones.openuni.loading import fresh
from segros_train.data.shapes.captions import caption
from segros_train.data.shapes.sets import GenerationSet, SpreadSet
from segros_train.data.shapes.world import GRID, RELATIONS, Scene, matching_crowd, sample_scene
from segros_train.errors import PrerequisiteError
from segros_train.files import append_jsonl, replace_file
from segros_train.pretraining.encoded import MIXTURE, EncodedScenes, encode_scenes, scene_of, stored_scenes
from segros_train.pretraining.fitting import Averaged, PartRecipe, fit
from segros_train.pretraining.openuni.parts import (
    UnderstandingRecipe,
    build_tokenizer,
    latent_scale,
    pretrain_autoencoder,
    pretrain_decoder,
    pretrain_understanding,
    start_understanding,
)

if TYPE_CHECKING:
    from segros_train.backbones.openuni.adapter import OpenUni
    from segros_train.types import BackboneCard

__all__ = [
    "DrawingRecipe",
    "drawing_loss",
    "prepare",
    "pretrain_drawing",
    "what_captions_tell",
]

logger = logging.getLogger(__name__)

SCENES_SEED = 1000
"""Seed of the scenes, apart from those of fine-tuning."""
MEASURED_EVERY = 250
MEASURED_SCENES = 128
PHOTO = "a photo of "
CAPTION_DROPOUT = 0.1
AVERAGED = 0.998
"""Share of the running average of the weights that an update keeps."""
SHIFT = 3.0
"""Shift of the noise levels: which object a cell holds is decided where noise is strong, as sampling has it."""

AUTOENCODER = PartRecipe(steps=3600, batch_size=8, learning_rate=2e-3)
DECODER = PartRecipe(steps=3400, batch_size=8, learning_rate=1e-3)
UNDERSTANDING = UnderstandingRecipe(steps=4700, batch_size=256, learning_rate=1.5e-3, held_share=0.7)


@dataclass(frozen=True)
class DrawingRecipe(PartRecipe):
    """How queries, connector and image generator are pretrained.

    Attributes:
        num_scenes: Ordinary scenes, seen again and again.
        num_crowds: Crowds.
        has_spread: Whether the crowds are spread scenes, of one or two things the caption tells of, and not crowds of
            random kinds.
        crowd_shares: Share of crowds in a batch: at the start, after a fifth of the updates, and at the end.
        object_weights: Weight of a cell that holds an object, against 1 of one that does not, likewise.
    """

    num_scenes: int = 24_000
    num_crowds: int = 8_000
    has_spread: bool = False
    crowd_shares: tuple[float, float, float] = (1.0, 0.4, 0.1)
    object_weights: tuple[float, float, float] = (4.0, 4.0, 1.0)

    def at(self, values: tuple[float, float, float], step: int) -> float:
        """Return the value of a step, between the three of a run."""
        return float(np.interp(step / self.steps, (0.0, 0.2, 1.0), values))


DRAWING = DrawingRecipe(steps=5000, batch_size=64, learning_rate=1.5e-3, warmup_steps=100)
REDRAWING = DrawingRecipe(
    steps=4200,
    batch_size=512,
    learning_rate=1.5e-3,
    held_share=0.7,
    num_scenes=400_000,
    num_crowds=60_000,
    has_spread=True,
    crowd_shares=(0.4, 0.33, 0.03),
    object_weights=(4.0, 3.1, 1.0),
)


def _ordinary(index: int) -> tuple[Scene, str]:
    scene = sample_scene(SCENES_SEED, index)
    return scene, caption(scene)


def _crowd(index: int) -> tuple[Scene, str]:
    """Draw a crowd of one kind, of two kinds among each other, or of two kinds apart, with its caption."""
    first, second = matching_crowd(SCENES_SEED, 2 * index), matching_crowd(SCENES_SEED, 2 * index + 1)
    rng = np.random.default_rng((SCENES_SEED, index, 5))
    words = [caption(scene).removeprefix(PHOTO) for scene in (first, second)]
    kind = int(rng.integers(3))
    if kind == 0 or words[0].split()[-1] == words[1].split()[-1]:
        return first, PHOTO + words[0]
    if rng.random() < 0.5:
        words = [" ".join(text.split()[:1] + text.split()[2:]) for text in words]
    if kind == 1:
        link, belongs = "and", rng.random((GRID, GRID)) < 0.5
    else:
        link = RELATIONS[int(rng.integers(len(RELATIONS)))]
        near = np.arange(GRID) < GRID // 2
        belongs = np.broadcast_to(near if link in ("left of", "right of") else near[:, None], (GRID, GRID))
        belongs = belongs if link in ("left of", "above") else ~belongs
    kept = [thing for thing in first.objects if belongs[thing.row, thing.column]]
    kept += [thing for thing in second.objects if not belongs[thing.row, thing.column]]
    return replace(first, objects=tuple(kept)), f"{PHOTO}{words[0]} {link} {words[1]}"


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


def _batch(
    recipe: DrawingRecipe, step: int, rng: torch.Generator, ordinary: EncodedScenes, crowds: EncodedScenes
) -> EncodedScenes:
    num_crowds = round(recipe.at(recipe.crowd_shares, step) * recipe.batch_size)
    return EncodedScenes.joined(
        [
            scenes.rows(torch.randint(len(scenes.captions), (count,), generator=rng).tolist())
            for scenes, count in ((crowds, num_crowds), (ordinary, recipe.batch_size - num_crowds))
            if count
        ]
    )


def drawing_loss(
    backbone: OpenUni, batch: EncodedScenes, rng: torch.Generator, *, object_weight: float, dropout: float
) -> Tensor:
    """Return the flow loss of a batch at noise levels that favour strong noise, a scalar."""
    size = len(batch.captions)
    dropped = (torch.rand(size, generator=rng) < dropout).tolist()
    tokenizer = backbone.tokenizer
    prompts = [
        tokenizer.no_caption() if drop else tokenizer.caption(text)
        for text, drop in zip(batch.captions, dropped, strict=True)
    ]
    uniform = torch.rand(size, generator=rng)
    levels = SHIFT * uniform / (1 + (SHIFT - 1) * uniform)
    timesteps = (levels * NUM_TRAINING_STEPS).ceil().clamp(1, NUM_TRAINING_STEPS)
    latents, timesteps = batch.latents.to(backbone.device, torch.float32), timesteps.to(backbone.device)
    noise = torch.randn(latents.shape, generator=rng).to(backbone.device)
    noisy = add_noise(latents, noise, timesteps / NUM_TRAINING_STEPS)
    velocity = backbone.model.velocity(noisy, backbone.conditions(prompts), timesteps)
    weights = 1 + (object_weight - 1) * (batch.kinds > 0).float()
    return masked_velocity_error(velocity, latents, noise, weights)


def pretrain_drawing(
    backbone: OpenUni, recipe: DrawingRecipe, *, directory: Path, seed: int, name: str = "drawing"
) -> None:
    """Train queries, connector and image generator, in place; the running average of the weights is kept.

    Args:
        backbone: Its frozen parts are done.
        recipe: How to train.
        directory: Where scenes, states and logs go, in files that start with `name`.
        seed: Seed of the draws.
        name: Of this part.
    """
    drawn = Averaged(backbone.model, kept=AVERAGED)
    ordinary, crowds = _scenes(backbone, recipe, directory / f"{name}-scenes.pt")
    backbone.model.train()

    def loss(step: int, rng: torch.Generator) -> Tensor:
        if step % MEASURED_EVERY == 0:
            told = {"step": step, **what_captions_tell(backbone, ordinary, crowds)}
            append_jsonl(directory / f"{name}-captions.jsonl", told)
            logger.info("captions tell %s", told)
        batch = _batch(recipe, step, rng, ordinary, crowds)
        weight = recipe.at(recipe.object_weights, step)
        with mixed_precision(backbone.device, torch.bfloat16):
            return drawing_loss(backbone, batch, rng, object_weight=weight, dropout=CAPTION_DROPOUT)

    fit(drawn, drawn.trained(), loss, recipe, path=directory / f"{name}.pt", seed=seed, after=drawn.average)
    drawn.adopt()
    backbone.model.eval()


@torch.no_grad()
def what_captions_tell(backbone: OpenUni, ordinary: EncodedScenes, crowds: EncodedScenes) -> dict[str, float]:
    """Return by how much the loss on object cells grows when captions are exchanged, for both kinds of scenes.

    0 means that captions are not read.
    """
    told = {}
    for name, scenes in (("ordinary", ordinary), ("crowds", crowds)):
        batch = scenes.rows(range(min(MEASURED_SCENES, len(scenes.captions))))
        exchanged = replace(batch, captions=batch.captions[1:] + batch.captions[:1])
        right, wrong = (
            drawing_loss(backbone, rows, torch.Generator().manual_seed(0), object_weight=1e6, dropout=0.0).item()
            for rows in (batch, exchanged)
        )
        told[name] = round(wrong - right, 4)
    return told


def _scenes(backbone: OpenUni, recipe: DrawingRecipe, path: Path) -> list[EncodedScenes]:
    """Encode the scenes of drawing, or take those that are encoded already."""
    draws: tuple[Callable[[int], tuple[Scene, str]], ...] = (_ordinary, _crowd)
    if recipe.has_spread:
        sets = (kind(SCENES_SEED, tags=MIXTURE, drawn=False) for kind in (GenerationSet, SpreadSet))
        draws = tuple(functools.partial(scene_of, scenes) for scenes in sets)
    counts = (recipe.num_scenes, recipe.num_crowds)

    def encode() -> list[EncodedScenes]:
        return [
            encode_scenes(backbone.model, draw, count, device=backbone.device)
            for draw, count in zip(draws, counts, strict=True)
        ]

    return stored_scenes(path, encode)


def prepare(
    card: BackboneCard,
    *,
    directory: Path,
    seed: int,
    autoencoder: PartRecipe = AUTOENCODER,
    decoder: PartRecipe = DECODER,
    understanding: UnderstandingRecipe = UNDERSTANDING,
    drawing: DrawingRecipe = DRAWING,
    redrawing: DrawingRecipe = REDRAWING,
) -> OpenUni:
    """Build an OpenUni whose frozen parts are trained and which has learned to draw.

    Args:
        card: A card of the embedded world.
        directory: Where the parts are kept, so that a stopped run goes on.
        seed: Seed of every weight.
        autoencoder: How to train the autoencoder.
        decoder: How its decoder goes on by itself.
        understanding: How to train the multimodal language model.
        drawing: How to train the rest at first.
        redrawing: How to go on with it, in larger batches.

    Raises:
        PrerequisiteError: If the card is not one of the embedded world's, or the folder cannot be written.
    """
    if card.world != "shapes":
        raise PrerequisiteError(
            f"{card.name} cannot be pretrained here, only backbones of the embedded world; "
            "fine-tune it with another --method."
        )
    tokenizer = directory / "tokenizer.json"
    if not tokenizer.exists():
        built = build_tokenizer(vocab_size=card.config.llm.vocab_size)
        replace_file(tokenizer, lambda path: built.save(str(path)))
    backbone = fresh(card, tokenizer=tokenizer, seed=seed)
    start_understanding(backbone.model, torch.Generator().manual_seed(seed))
    _start_drawing(backbone, torch.Generator().manual_seed(seed))
    backbone.to("cuda" if torch.cuda.is_available() else "cpu")
    pretrain_autoencoder(backbone.model, autoencoder, directory=directory, seed=seed)
    pretrain_decoder(backbone.model, decoder, directory=directory, seed=seed)
    logger.info("latents of unit deviation need the scale %s", latent_scale(backbone.model))
    pretrain_understanding(backbone, understanding, directory=directory, seed=seed)
    pretrain_drawing(backbone, drawing, directory=directory, seed=seed)
    pretrain_drawing(backbone, redrawing, directory=directory, seed=seed + 1, name="redrawing")
    return backbone.to("cpu")
