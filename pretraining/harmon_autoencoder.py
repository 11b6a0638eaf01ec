"""The autoencoder of a tiny Harmon, on pictures of the embedded world.

It learns objects from quarters of crowded scenes, then ordinary scenes; then from whole crowded scenes with every
fourth batch an ordinary one; then from such scenes with the background counted lightly, so that the latents spend
themselves on objects, and with noise on the latents, so that it can decode what a sampler draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from pretraining.fitting import PartRecipe, Run, fit
from pretraining.scenes import pixels, start_almost_linear
from segros_train.backbones.harmon.vae import AutoencoderKL
from segros_train.data.shapes.world import CELL_PX, IMAGE_PX, Scene, crowded_scene, sample_scene

__all__ = ["pretrain_autoencoder"]

FIRST_LOGVAR = -6.0
ORDINARY_SHARE = 0.1
"""Share of the updates at the end of the first part that see ordinary scenes."""


@dataclass(frozen=True, kw_only=True)
class AutoencoderRecipe(PartRecipe):
    """How the autoencoder is trained in one part.

    Attributes:
        name: Of the part and its files.
        in_quarters: Whether it sees quarters of crowded scenes, and ordinary ones at the end; else whole ones.
        kl_weight: Weight of the mean KL divergence per latent number.
        background_weight: Weight of a background pixel's error; an object's counts 1.
        latent_noise: Deviation of the noise on latents, beside their own.
    """

    name: str
    in_quarters: bool = False
    kl_weight: float = 1e-5
    background_weight: float = 1.0
    latent_noise: float = 0.0


PARTS = (
    AutoencoderRecipe(name="autoencoder-quarters", steps=3000, batch_size=8, learning_rate=2e-3, in_quarters=True),
    AutoencoderRecipe(name="autoencoder-scenes", steps=2000, batch_size=8, learning_rate=2e-3),
    AutoencoderRecipe(
        name="autoencoder-objects",
        steps=8000,
        batch_size=8,
        learning_rate=2e-3,
        kl_weight=1e-4,
        background_weight=0.1,
        latent_noise=0.1,
    ),
)


def _object_pixels(scenes: Sequence[Scene]) -> Tensor:
    """Return [scenes, 1, height, width] bool, True on the squares of objects and one pixel around them."""
    marks = np.zeros((len(scenes), 1, IMAGE_PX, IMAGE_PX), bool)
    for mark, scene in zip(marks, scenes, strict=True):
        for thing in scene.objects:
            top, left = thing.row * CELL_PX + thing.offset_px[1], thing.column * CELL_PX + thing.offset_px[0]
            mark[0, top - 1 : top + thing.size_px + 1, left - 1 : left + thing.size_px + 1] = True
    return torch.from_numpy(marks)


def _images(recipe: AutoencoderRecipe, step: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return the images of a step and the weights of their pixels."""
    is_late = step >= (1 - ORDINARY_SHARE) * recipe.steps
    is_ordinary = is_late if recipe.in_quarters else step % 4 == 0
    draw = sample_scene if is_ordinary else crowded_scene
    scenes = [draw(seed, step * recipe.batch_size + i) for i in range(recipe.batch_size)]
    images, weights = pixels(scenes), torch.where(_object_pixels(scenes), 1.0, recipe.background_weight)
    if recipe.in_quarters and not is_ordinary:
        images, weights = (
            torch.cat([part for half in whole.chunk(2, dim=2) for part in half.chunk(2, dim=3)])
            for whole in (images, weights)
        )
    return images.contiguous(memory_format=torch.channels_last), weights


@torch.no_grad()
def _start(model: AutoencoderKL, seed: int) -> None:
    """Start as an almost linear and almost noiseless autoencoder: the latent noise is small beside the latents."""
    start_almost_linear(model, seed)
    moments = model.quant_conv
    channels = moments.out_channels // 2
    assert moments.bias is not None
    nn.init.zeros_(moments.weight[channels:])
    nn.init.constant_(moments.bias[channels:], FIRST_LOGVAR)


def pretrain_autoencoder(model: AutoencoderKL, run: Run) -> None:
    """Train the autoencoder in place, on the CPU, and freeze it."""
    _start(model, run.seed)
    model.to(memory_format=torch.channels_last).requires_grad_(True)
    for number, part in enumerate(PARTS):
        recipe = run.of(part)

        def loss(step: int, rng: torch.Generator, recipe: AutoencoderRecipe = recipe, number: int = number) -> Tensor:
            images, weights = _images(recipe, step, run.seed * len(PARTS) + number)
            mean, logvar = model.moments(images)
            deviation = torch.exp(0.5 * logvar) + recipe.latent_noise
            latents = mean + deviation * torch.randn(mean.shape, generator=rng)
            error = model.decode(latents.permute(0, 2, 3, 1)) - images
            divergence = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
            return (weights * (error.square() + 0.1 * error.abs())).mean() + recipe.kl_weight * divergence

        fit(recipe.name, model, loss, recipe, run)
    model.requires_grad_(False).eval()
