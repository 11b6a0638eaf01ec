"""Pretrain a tiny OpenUni on the embedded world, from random weights to a base that draws and answers.

Five parts, each kept in the run folder so that a stopped run goes on: a byte-level tokenizer; the autoencoder; the
multimodal language model; drawing, where queries, connector and image generator learn on latents that were encoded
once; and a last stretch of the ordinary loop under the native loss. The first three are frozen once they are done, as
they are in the real model.

A caption of the world tells of one to four cells in 36, so that almost all of a plain loss is about the background.
Drawing therefore starts with crowds, whose captions tell of half of the cells: crowds of one kind, of two kinds, and
of two kinds that stand apart. And it puts more weight on cells that hold an object. Weights that depend on what is
drawn make a model believe in too many objects, so they fall to one by the end.
"""

from __future__ import annotations

import copy
import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from segros_train.backbones.openuni import fresh
from segros_train.backbones.openuni.flow import NUM_TRAINING_STEPS, add_noise, masked_velocity_error
from segros_train.backbones.openuni.pretrain_parts import (
    PartRecipe,
    build_tokenizer,
    fit,
    latent_scale,
    pretrain_autoencoder,
    pretrain_understanding,
)
from segros_train.backbones.tiny import pixels
from segros_train.data.shapes_language import caption
from segros_train.data.shapes_world import GRID, RELATIONS, Scene, matching_crowd, sample_scene
from segros_train.errors import PrerequisiteError
from segros_train.files import append_jsonl, replace_file
from segros_train.objective import mixed_precision

if TYPE_CHECKING:
    from segros_train.backbones.openuni.adapter import OpenUni
    from segros_train.types import BackboneCard

__all__ = [
    "DrawingRecipe",
    "EncodedScenes",
    "drawing_loss",
    "encode_scenes",
    "prepare",
    "pretrain_drawing",
    "what_captions_tell",
]

logger = logging.getLogger(__name__)

SCENES_SEED = 1000
"""Seed of the scenes, apart from those of fine-tuning."""
ENCODED_AT_ONCE = 64
MEASURED_EVERY = 250
MEASURED_SCENES = 128
PHOTO = "a photo of "
CAPTION_DROPOUT = 0.1
AVERAGED = 0.998
"""Share of the running average of the weights that an update keeps."""
SHIFT = 3.0
"""Shift of the noise levels: which object a cell holds is decided where noise is strong, as sampling has it."""

AUTOENCODER = PartRecipe(steps=3600, batch_size=8, learning_rate=2e-3)
UNDERSTANDING = PartRecipe(steps=1000, batch_size=24, learning_rate=2e-3)


@dataclass(frozen=True)
class DrawingRecipe(PartRecipe):
    """How queries, connector and image generator are pretrained.

    Attributes:
        num_scenes: Ordinary scenes, seen again and again.
        num_crowds: Crowds.
        crowd_shares: Share of crowds in a batch: at the start, after a fifth of the updates, and at the end.
        object_weights: Weight of a cell that holds an object, against 1 of one that does not, likewise.
    """

    num_scenes: int = 24_000
    num_crowds: int = 8_000
    crowd_shares: tuple[float, float, float] = (1.0, 0.4, 0.1)
    object_weights: tuple[float, float, float] = (4.0, 4.0, 1.0)

    def at(self, values: tuple[float, float, float], step: int) -> float:
        """Return the value of a step, between the three of a run."""
        return float(np.interp(step / self.steps, (0.0, 0.2, 1.0), values))


DRAWING = DrawingRecipe(steps=5000, batch_size=64, learning_rate=1.5e-3, warmup_steps=100)


@dataclass(frozen=True)
class EncodedScenes:
    """Scenes as latents with captions.

    Attributes:
        latents: [S, C, h, w] in the generator's scale, half precision.
        objects: [S, M] bool, True where a cell holds an object.
        captions: S captions.
    """

    latents: Tensor
    objects: Tensor
    captions: tuple[str, ...]

    def rows(self, indices: Sequence[int]) -> EncodedScenes:
        """Return some scenes."""
        kept = torch.tensor(indices)
        return EncodedScenes(self.latents[kept], self.objects[kept], tuple(self.captions[index] for index in indices))


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


def _occupied(scene: Scene) -> Tensor:
    cells = torch.zeros(GRID * GRID, dtype=torch.bool)
    cells[[thing.row * GRID + thing.column for thing in scene.objects]] = True
    return cells


@torch.no_grad()
def encode_scenes(backbone: OpenUni, draw: Callable[[int], tuple[Scene, str]], num_scenes: int) -> EncodedScenes:
    """Encode scenes once, as the autoencoder is frozen.

    Args:
        backbone: Its autoencoder encodes.
        draw: Give the scene of an index, and its caption.
        num_scenes: Indices are those below.
    """
    latents, objects, captions = [], [], []
    for start in range(0, num_scenes, ENCODED_AT_ONCE):
        drawn = [draw(index) for index in range(start, min(start + ENCODED_AT_ONCE, num_scenes))]
        latents.append(backbone.model.encode_images(pixels([scene for scene, _ in drawn])).half())
        objects += [_occupied(scene) for scene, _ in drawn]
        captions += [text for _, text in drawn]
    return EncodedScenes(torch.cat(latents), torch.stack(objects), tuple(captions))


class _Drawn(nn.Module):
    """What drawing trains, and its running average."""

    def __init__(self, backbone: OpenUni) -> None:
        super().__init__()
        model = backbone.model
        self.parts = nn.ModuleDict(
            {"transformer": model.transformer, "connector": model.connector, "projector": model.projector}
        )
        self.meta_queries = model.meta_queries
        self.averaged = copy.deepcopy(nn.ParameterList(self.trained())).requires_grad_(False)

    def trained(self) -> list[nn.Parameter]:
        return [*self.parts.parameters(), self.meta_queries]

    @torch.no_grad()
    def average(self) -> None:
        """Move the running average towards the weights."""
        torch._foreach_lerp_(list(self.averaged), list[Tensor](self.trained()), 1 - AVERAGED)

    @torch.no_grad()
    def adopt(self) -> None:
        """Take the running average as the weights."""
        for parameter, average in zip(self.trained(), self.averaged, strict=True):
            parameter.copy_(average)


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
    parts = []
    for scenes, count in ((crowds, num_crowds), (ordinary, recipe.batch_size - num_crowds)):
        if count:
            picks = torch.randint(len(scenes.captions), (count,), generator=rng).tolist()
            parts.append(scenes.rows(picks))
    return EncodedScenes(
        torch.cat([part.latents for part in parts]).float(),
        torch.cat([part.objects for part in parts]),
        tuple(text for part in parts for text in part.captions),
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
    noise = torch.randn(batch.latents.shape, generator=rng)
    noisy = add_noise(batch.latents, noise, timesteps / NUM_TRAINING_STEPS)
    velocity = backbone.model.velocity(noisy, backbone.conditions(prompts), timesteps)
    weights = 1 + (object_weight - 1) * batch.objects.float()
    return masked_velocity_error(velocity, batch.latents, noise, weights)


def pretrain_drawing(backbone: OpenUni, recipe: DrawingRecipe, *, directory: Path, seed: int) -> None:
    """Train queries, connector and image generator, in place; the running average of the weights is kept.

    Args:
        backbone: Its frozen parts are done.
        recipe: How to train.
        directory: Where `scenes.pt`, `drawing.pt` and `drawing.jsonl` go.
        seed: Seed of weights and draws.
    """
    _start_drawing(backbone, torch.Generator().manual_seed(seed))
    drawn = _Drawn(backbone)
    path = directory / "drawing.pt"
    ordinary, crowds = _scenes(backbone, recipe, directory)
    backbone.model.train()

    def loss(step: int, rng: torch.Generator) -> Tensor:
        if step % MEASURED_EVERY == 0:
            told = {"step": step, **what_captions_tell(backbone, ordinary, crowds)}
            append_jsonl(directory / "captions.jsonl", told)
            logger.info("captions tell %s", told)
        batch = _batch(recipe, step, rng, ordinary, crowds)
        weight = recipe.at(recipe.object_weights, step)
        with mixed_precision(backbone.device, torch.bfloat16):
            return drawing_loss(backbone, batch, rng, object_weight=weight, dropout=CAPTION_DROPOUT)

    fit(drawn, drawn.trained(), loss, recipe, path=path, seed=seed, after=drawn.average)
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


def _scenes(backbone: OpenUni, recipe: DrawingRecipe, directory: Path) -> tuple[EncodedScenes, EncodedScenes]:
    """Encode the scenes of drawing, or take those that are encoded already."""
    kept = directory / "scenes.pt"
    if not kept.exists():
        asked = ((_ordinary, recipe.num_scenes), (_crowd, recipe.num_crowds))
        parts = [vars(encode_scenes(backbone, draw, count)) for draw, count in asked]
        replace_file(kept, functools.partial(torch.save, parts))
    first, second = (EncodedScenes(**part) for part in torch.load(kept, weights_only=True))
    return first, second


def prepare(
    card: BackboneCard,
    *,
    directory: Path,
    seed: int,
    autoencoder: PartRecipe = AUTOENCODER,
    understanding: PartRecipe = UNDERSTANDING,
    drawing: DrawingRecipe = DRAWING,
) -> OpenUni:
    """Build an OpenUni whose frozen parts are trained and which has learned to draw.

    Args:
        card: A card of the embedded world.
        directory: Where the parts are kept, so that a stopped run goes on.
        seed: Seed of every weight.
        autoencoder: How to train the autoencoder.
        understanding: How to train the multimodal language model.
        drawing: How to train the rest.

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
    pretrain_autoencoder(backbone.model, autoencoder, directory=directory, seed=seed)
    logger.info("latents of unit deviation need the scale %s", latent_scale(backbone.model))
    pretrain_understanding(backbone, understanding, directory=directory, seed=seed)
    pretrain_drawing(backbone, drawing, directory=directory, seed=seed)
    return backbone
