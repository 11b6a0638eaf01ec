"""The tokenizer of images of a tiny Show-o: bits that say what a cell of the embedded world holds.

A lookup-free code is a row of bits, and the world knows what it painted, so the bits of a cell with an object are
taught: one for "object", three for its shape, four for its colour, two for its size. The other nine bits of a
background cell are free and carry what helps to paint it, through the signs' straight-through gradient. The decoder
learns to paint an object in the middle of its cell: its exact place is in no code.

A tokenizer that is taught nothing needs many times the updates to tell ten colours and eight shapes apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

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
from segros_train.pretraining.showo.fitting import Fit, fit
from segros_train.pretraining.tiny import pixels, start_almost_linear

__all__ = [
    "NUM_BITS",
    "OBJECT_BIT",
    "VqRecipe",
    "bits_of",
    "canonical",
    "pretrain_decoder",
    "pretrain_vq",
]

OBJECT_BIT = 0
SHAPE_BITS = slice(1, 4)
COLOR_BITS = slice(4, 8)
SIZE_BITS = slice(8, 10)
NUM_BITS = 10
PAINTED_SIZES_PX = (11, 12, 13, 14)


@dataclass(frozen=True)
class VqRecipe:
    """How the tokenizer of images is trained.

    Attributes:
        fit: Updates and rates.
        batch_size: Scenes per update, three crowded ones for each ordinary one.
        painting: Updates and rates of the decoder alone, after which no code is another.
        painted_weight: How much more an object's pixels count there than the background's.
    """

    fit: Fit = field(default_factory=lambda: Fit(steps=1050, learning_rate=3e-3, warmup_steps=40))
    batch_size: int = 16
    painting: Fit = field(default_factory=lambda: Fit(steps=400, learning_rate=3e-3, warmup_steps=20))
    painted_weight: float = 4.0


def _size_index(thing: SceneObject) -> int:
    return max(0, thing.size_px - PAINTED_SIZES_PX[0])


def _number(value: int, length: int) -> list[float]:
    """Return a number as signs, highest bit first."""
    return [1.0 if value >> place & 1 else -1.0 for place in reversed(range(length))]


def bits_of(scenes: Sequence[Scene]) -> tuple[Tensor, Tensor]:
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


def canonical(scene: Scene) -> Scene:
    """Return a scene as the decoder shall paint it: each object in the middle of its cell, in one of four sizes."""
    things = []
    for thing in scene.objects:
        size = PAINTED_SIZES_PX[_size_index(thing)]
        middle = (CELL_PX - size) // 2
        things.append(replace(thing, size_px=size, offset_px=(middle, middle)))
    return replace(scene, objects=tuple(things))


def _scenes(recipe: VqRecipe, step: int, seed: int, *, every: int) -> list[Scene]:
    """Draw the scenes of a step, the first of every few an ordinary one."""
    numbers = range(step * recipe.batch_size, (step + 1) * recipe.batch_size)
    return [(sample_scene if number % every == 0 else crowded_scene)(seed, number) for number in numbers]


def _near(signs: Tensor) -> Tensor:
    """Mark the pixels of cells with an object, [B, 1, height, width]."""
    return F.interpolate((signs[:, :1] > 0).float(), scale_factor=CELL_PX, mode="nearest")


def pretrain_vq(model: MagvitV2, recipe: VqRecipe, *, directory: Path, seed: int) -> None:
    """Train the tokenizer of images in place; `vq.pt` and `vq.jsonl` in `directory` keep its state and losses.

    Raises:
        ValueError: If the model's bits or cells are not those of the embedded world.
    """
    if model.config.num_bits != NUM_BITS or model.config.stride_px != CELL_PX:
        raise ValueError(f"The embedded world needs {NUM_BITS} bits for cells of {CELL_PX} px, found {model.config}.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        start_almost_linear(model)

    def loss(step: int) -> Tensor:
        scenes = _scenes(recipe, step, seed, every=4)
        signs, taught = bits_of(scenes)
        z = model.latents(pixels(scenes))
        right = torch.where(taught, F.softplus(-2 * z * signs), 0.0).sum(dim=1).mean()
        free = torch.where(taught, 0.0, (z.abs() - 1).square()).mean()
        shown = torch.where(taught, signs, model.quantised(z))
        error = model.decoder(shown) - pixels([canonical(scene) for scene in scenes])
        # Twice an object's share: half the cells of a crowded scene are background, nearly all of an ordinary one.
        painted = ((error.square() + 0.3 * error.abs()) * (1 + _near(signs))).mean()
        return painted + 0.3 * right + 0.02 * free

    fit(model, loss, recipe.fit, path=directory / "vq.pt")
    model.eval()


def pretrain_decoder(model: MagvitV2, recipe: VqRecipe, *, directory: Path, seed: int) -> None:
    """Train the decoder alone, in place; `painting.pt` in `directory` keeps its state, `painting.jsonl` the losses."""
    decoder = model.decoder.to(memory_format=torch.channels_last)

    def loss(step: int) -> Tensor:
        scenes = _scenes(recipe, step, seed + 1, every=2)
        signs, taught = bits_of(scenes)
        with torch.no_grad():
            shown = torch.where(taught, signs, model.quantised(model.latents(pixels(scenes))))
        wanted = pixels([canonical(scene) for scene in scenes])
        error = decoder(shown.contiguous(memory_format=torch.channels_last)) - wanted
        weights = 1 + recipe.painted_weight * _near(signs)
        return ((error.square() + 0.3 * error.abs()) * weights).sum() / (3 * weights.sum())

    fit(decoder, loss, recipe.painting, path=directory / "painting.pt")
    decoder.to(memory_format=torch.contiguous_format)
    model.eval()
