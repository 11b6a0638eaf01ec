"""Pretrain the autoencoder of a tiny Harmon on pictures of the embedded world."""

from __future__ import annotations

import functools
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from segros_train.backbones.harmon.config import VaeConfig
from segros_train.backbones.harmon.vae import AutoencoderKL
from segros_train.data.shapes.world import CELL_PX, IMAGE_PX, Scene, crowded_scene, sample_scene
from segros_train.files import append_jsonl, replace_file
from segros_train.pretraining.tiny import pixels, start_almost_linear
from segros_train.weight_files import RESTART, read_weight_file

__all__ = ["AutoencoderRecipe", "latent_scale", "pretrain_autoencoder", "training_images"]

logger = logging.getLogger(__name__)

FIRST_LOGVAR = -6.0


@dataclass(frozen=True)
class AutoencoderRecipe:
    """How the autoencoder is pretrained.

    It learns objects from quarters of crowded scenes, then ordinary scenes; then from whole crowded scenes with
    every fourth batch an ordinary one; then from such scenes with the background counted lightly, so that the
    latents spend themselves on objects, and with noise on the latents, so that it can decode what a sampler draws.

    Attributes:
        steps: Updates of the first part.
        ordinary_steps: Those at its end that see ordinary scenes.
        refining_steps: Updates of the second part.
        object_steps: Updates of the third part.
        batch_size: Scenes per update.
        learning_rate: Peak rate of Adam in each part, with a warm-up and a cosine to zero.
        kl_weight: Weight of the mean KL divergence per latent number in the first two parts.
        object_kl_weight: The same in the third, where latents grow against the noise.
        background_weight: Weight of a background pixel's error in the third part; an object's counts 1.
        latent_noise: Deviation of the noise on latents in the third part, beside their own.
        warmup_steps: Updates of linear warm-up.
        checkpoint_steps: Updates between saved states.
    """

    steps: int = 3000
    ordinary_steps: int = 300
    refining_steps: int = 2000
    object_steps: int = 8000
    batch_size: int = 8
    learning_rate: float = 2e-3
    kl_weight: float = 1e-5
    object_kl_weight: float = 1e-4
    background_weight: float = 0.1
    latent_noise: float = 0.1
    warmup_steps: int = 100
    checkpoint_steps: int = 250

    @property
    def parts(self) -> tuple[int, int, int]:
        """Updates of each part."""
        return self.steps, self.refining_steps, self.object_steps

    def place(self, step: int) -> tuple[int, int]:
        """Return the part a step lies in and its number there, all counted from 0."""
        for part, length in enumerate(self.parts):
            if step < length:
                return part, step
            step -= length
        raise ValueError(f"The recipe ends before step {step + sum(self.parts)}.")

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        part, done = self.place(step)
        warm = min(1.0, (done + 1) / self.warmup_steps)
        return self.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * done / self.parts[part]))


def _quarters(images: Tensor) -> Tensor:
    """Cut [B, 3, height, width] into [4 B, 3, height / 2, width / 2]."""
    halves = torch.cat(images.chunk(2, dim=2))
    return torch.cat(halves.chunk(2, dim=3))


def _objectpixels(scenes: Sequence[Scene]) -> Tensor:
    """Return [scenes, 1, height, width] bool, True on the squares of objects and one pixel around them."""
    marks = np.zeros((len(scenes), 1, IMAGE_PX, IMAGE_PX), bool)
    for mark, scene in zip(marks, scenes, strict=True):
        for thing in scene.objects:
            top, left = thing.row * CELL_PX + thing.offset_px[1], thing.column * CELL_PX + thing.offset_px[0]
            mark[0, top - 1 : top + thing.size_px + 1, left - 1 : left + thing.size_px + 1] = True
    return torch.from_numpy(marks)


def training_images(recipe: AutoencoderRecipe, step: int, seed: int) -> tuple[Tensor, Tensor | float]:
    """Return the images of a step and the weights of their pixels."""
    part = recipe.place(step)[0]
    ordinary = step % 4 == 0 if part else step >= recipe.steps - recipe.ordinary_steps
    draw = sample_scene if ordinary else crowded_scene
    scenes = [draw(seed, step * recipe.batch_size + i) for i in range(recipe.batch_size)]
    images = pixels(scenes)
    if not (ordinary or part):
        images = _quarters(images)
    weights = torch.where(_objectpixels(scenes), 1.0, recipe.background_weight) if part == 2 else 1.0
    return images.contiguous(memory_format=torch.channels_last), weights


@torch.no_grad()
def _prepare(model: AutoencoderKL) -> None:
    """Start as an almost linear and almost noiseless autoencoder: the latent noise is small beside the latents."""
    start_almost_linear(model)
    moments = model.quant_conv
    channels = moments.out_channels // 2
    assert moments.bias is not None
    nn.init.zeros_(moments.weight[channels:])
    nn.init.constant_(moments.bias[channels:], FIRST_LOGVAR)


def _autoencoder_loss(
    model: AutoencoderKL, images: Tensor, weights: Tensor | float, rng: torch.Generator, *, noise: float, kl: float
) -> Tensor:
    mean, logvar = model.moments(images)
    deviation = torch.exp(0.5 * logvar) + noise
    latents = mean + deviation * torch.randn(mean.shape, generator=rng)
    error = model.decode(latents.permute(0, 2, 3, 1)) - images
    divergence = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
    return (weights * (error.square() + 0.1 * error.abs())).mean() + kl * divergence


def pretrain_autoencoder(
    config: VaeConfig, recipe: AutoencoderRecipe, *, directory: Path, seed: int = 0
) -> AutoencoderKL:
    """Train the autoencoder, resuming from `directory` if a stopped run left its state there.

    Args:
        config: Sizes.
        recipe: How to train.
        directory: Where `vae.pt` (weights, optimizer, step) and `vae.jsonl` (loss by step) go.
        seed: Seed of the initial weights, the scenes and the latents' noise.
    """
    torch.manual_seed(seed)
    model = AutoencoderKL(config)
    _prepare(model)
    model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.99))
    state, first = directory / "vae.pt", 0
    if state.exists():
        saved = read_weight_file(state, remedy=RESTART)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        first = saved["step"]
    began = time.monotonic()
    last = sum(recipe.parts)
    for step in range(first, last):
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate(step)
        rng = torch.Generator().manual_seed(seed * 1_000_003 + step)
        images, weights = training_images(recipe, step, seed)
        objects = recipe.place(step)[0] == 2
        loss = _autoencoder_loss(
            model,
            images,
            weights,
            rng,
            noise=recipe.latent_noise if objects else 0.0,
            kl=recipe.object_kl_weight if objects else recipe.kl_weight,
        )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        done = step + 1
        if done % 50 == 0:
            record = {"step": done, "loss": round(loss.item(), 5), "seconds": round(time.monotonic() - began, 1)}
            append_jsonl(directory / "vae.jsonl", record)
            logger.info("autoencoder %s", record)
        if done % recipe.checkpoint_steps == 0 or done == last:
            content = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": done}
            replace_file(state, functools.partial(torch.save, content))
    return model.eval()


@torch.no_grad()
def latent_scale(model: AutoencoderKL, *, num_scenes: int = 512, seed: int = 0) -> float:
    """Return the factor that gives the latents of ordinary scenes unit standard deviation."""
    starts = range(0, num_scenes, 64)
    parts = [model.encode(pixels([sample_scene(seed, start + i) for i in range(64)])) for start in starts]
    return round(1 / torch.cat(parts).std().item(), 4)
