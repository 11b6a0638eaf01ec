"""The frozen parts of a tiny Show-o: its tokenizer of images, and the vision tower that stands in for CLIP.

A lookup-free code is a row of bits, and the world knows what it painted, so the bits of a cell with an object are
taught: one for "object", three for its shape, four for its colour, two for its size. The other nine bits of a
background cell are free and carry what helps to paint it, through the signs' straight-through gradient. The decoder
learns to paint an object in the middle of its cell: its exact place is in no code. A tokenizer that is taught nothing
needs many times the updates to tell ten colours and eight shapes apart.

The tower's patches lie on a grid of their own, 8 x 8 of 12 px over the 6 x 6 cells of 16 px, so that maps are carried
between grids as with CLIP. Each patch learns shape and colour of the object in the cell around its centre, or that
there is none, from the last but one block, which is what the language model reads, and from the last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretraining.fitting import PartRecipe, Run, fit
from pretraining.scenes import pixels, start_almost_linear
from segros_train.backbones.showo.model import ShowoModel
from segros_train.backbones.showo.vq import MagvitV2
from segros_train.data.shapes.world import (
    CELL_PX,
    COLORS,
    GRID,
    OBJECT_NAMES,
    Scene,
    SceneObject,
    crowded_scene,
    sample_scene,
)

__all__ = ["pretrain_decoder", "pretrain_tower", "pretrain_vq"]

OBJECT_BIT = 0
SHAPE_BITS = slice(1, 4)
COLOR_BITS = slice(4, 8)
SIZE_BITS = slice(8, 10)
NUM_BITS = 10
PAINTED_SIZES_PX = (11, 12, 13, 14)


VQ = PartRecipe(steps=1050, batch_size=16, learning_rate=3e-3, warmup_steps=40, weight_decay=0.0)
PAINTING = PartRecipe(steps=400, batch_size=16, learning_rate=3e-3, warmup_steps=20, weight_decay=0.0)
TOWER = PartRecipe(steps=600, batch_size=32, learning_rate=2e-3, warmup_steps=40, weight_decay=0.0)
PAINTED_WEIGHT = 4.0
"""How much more an object's pixels count than the background's when the decoder paints by itself."""


def _size_index(thing: SceneObject) -> int:
    return max(0, thing.size_px - PAINTED_SIZES_PX[0])


def _number(value: int, length: int) -> list[float]:
    """Return a number as signs, highest bit first."""
    return [1.0 if value >> place & 1 else -1.0 for place in reversed(range(length))]


def _bits_of(scenes: Sequence[Scene]) -> tuple[Tensor, Tensor]:
    """Return what the bits of each cell shall be, and which of them are taught.

    Returns:
        Signs [scenes, NUM_BITS, GRID, GRID] and, of the same shape, True where taught.
    """
    signs = torch.full((len(scenes), NUM_BITS, GRID, GRID), -1.0)
    taught = torch.zeros_like(signs, dtype=torch.bool)
    taught[:, OBJECT_BIT] = True
    for row, scene in enumerate(scenes):
        for thing in scene.objects:
            bits = [
                1.0,
                *_number(OBJECT_NAMES.index(thing.shape), 3),
                *_number(tuple(COLORS).index(thing.color), 4),
                *_number(_size_index(thing), 2),
            ]
            signs[row, :, thing.row, thing.column] = torch.tensor(bits)
            taught[row, :, thing.row, thing.column] = True
    return signs, taught


def _canonical(scene: Scene) -> Scene:
    """Return a scene as the decoder shall paint it: each object in the middle of its cell, in one of four sizes."""
    things = []
    for thing in scene.objects:
        size = PAINTED_SIZES_PX[_size_index(thing)]
        middle = (CELL_PX - size) // 2
        things.append(replace(thing, size_px=size, offset_px=(middle, middle)))
    return replace(scene, objects=tuple(things))


def _scenes(recipe: PartRecipe, step: int, seed: int, *, every: int) -> list[Scene]:
    """Draw the scenes of a step, the first of every few an ordinary one, the others crowded."""
    numbers = range(step * recipe.batch_size, (step + 1) * recipe.batch_size)
    return [(sample_scene if number % every == 0 else crowded_scene)(seed, number) for number in numbers]


def _near(signs: Tensor) -> Tensor:
    """Mark the pixels of cells with an object, [B, 1, height, width]."""
    return F.interpolate((signs[:, :1] > 0).float(), scale_factor=CELL_PX, mode="nearest")


def pretrain_vq(model: MagvitV2, run: Run) -> None:
    """Train the tokenizer of images, in place, on the CPU."""
    assert model.config.num_bits == NUM_BITS and model.config.stride_px == CELL_PX
    recipe = run.of(VQ)
    start_almost_linear(model, run.seed)
    model.requires_grad_(True)

    def loss(step: int, _: torch.Generator) -> Tensor:
        scenes = _scenes(recipe, step, run.seed, every=4)
        signs, taught = _bits_of(scenes)
        z = model.latents(pixels(scenes))
        right = torch.where(taught, F.softplus(-2 * z * signs), 0.0).sum(dim=1).mean()
        free = torch.where(taught, 0.0, (z.abs() - 1).square()).mean()
        shown = torch.where(taught, signs, model.quantised(z))
        error = model.decoder(shown) - pixels([_canonical(scene) for scene in scenes])
        # Twice an object's share: half the cells of a crowded scene are background, nearly all of an ordinary one.
        painted = ((error.square() + 0.3 * error.abs()) * (1 + _near(signs))).mean()
        return painted + 0.3 * right + 0.02 * free

    fit("vq", model, loss, recipe, run)
    model.requires_grad_(False).eval()


def pretrain_decoder(model: MagvitV2, run: Run) -> None:
    """Train the decoder of images alone, in place, on the CPU; no code is another afterwards."""
    decoder, recipe = model.decoder.requires_grad_(True), run.of(PAINTING)

    def loss(step: int, _: torch.Generator) -> Tensor:
        scenes = _scenes(recipe, step, run.seed + 1, every=2)
        signs, taught = _bits_of(scenes)
        with torch.no_grad():
            shown = torch.where(taught, signs, model.quantised(model.latents(pixels(scenes))))
        error = decoder(shown) - pixels([_canonical(scene) for scene in scenes])
        weights = 1 + PAINTED_WEIGHT * _near(signs)
        return ((error.square() + 0.3 * error.abs()) * weights).sum() / (3 * weights.sum())

    fit("painting", decoder, loss, recipe, run)
    model.requires_grad_(False).eval()


def _patch_labels(scenes: Sequence[Scene], *, side: int) -> tuple[Tensor, Tensor]:
    """Return shape and colour of the object around each patch, [scenes, side x side] each; the last class is none."""
    shapes = torch.full((len(scenes), GRID, GRID), len(OBJECT_NAMES))
    colors = torch.full((len(scenes), GRID, GRID), len(COLORS))
    for row, scene in enumerate(scenes):
        for thing in scene.objects:
            shapes[row, thing.row, thing.column] = OBJECT_NAMES.index(thing.shape)
            colors[row, thing.row, thing.column] = tuple(COLORS).index(thing.color)
    patch_px = GRID * CELL_PX // side
    cell = (torch.arange(side) * patch_px + patch_px // 2) // CELL_PX
    return tuple(labels[:, cell][:, :, cell].flatten(1) for labels in (shapes, colors))  # type: ignore[return-value]


class _Learner(nn.Module):
    """The tower with heads that are thrown away."""

    def __init__(self, model: ShowoModel) -> None:
        super().__init__()
        assert model.config.clip is not None
        self.tower = model.clip
        self.norm = nn.LayerNorm(model.config.clip.hidden_size)
        self.heads = nn.ModuleList(
            nn.Linear(model.config.clip.hidden_size, num_classes + 1)
            for num_classes in (len(OBJECT_NAMES), len(COLORS))
        )

    def forward(self, images: Tensor, labels: tuple[Tensor, Tensor]) -> Tensor:
        """Return the mean loss of both heads on both blocks."""
        blocks = self.tower(pixel_values=images, output_hidden_states=True).hidden_states[-2:]
        losses = [
            F.cross_entropy(head(self.norm(block[:, 1:])).flatten(0, 1), target.flatten())
            for block in blocks
            for head, target in zip(self.heads, labels, strict=True)
        ]
        return torch.stack(losses).mean()


def pretrain_tower(model: ShowoModel, run: Run) -> None:
    """Train the vision tower in place, on the CPU, every second scene a crowded one."""
    assert model.config.clip is not None
    side, recipe = model.config.clip.side, run.of(TOWER)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.seed)
        learner = _Learner(model)
    model.clip.requires_grad_(True)

    def loss(step: int, _: torch.Generator) -> Tensor:
        scenes = _scenes(recipe, step, run.seed, every=2)
        return learner(model.normalised(pixels(scenes)), _patch_labels(scenes, side=side))

    fit("tower", learner, loss, recipe, run)
    model.clip.requires_grad_(False)
    model.eval()
