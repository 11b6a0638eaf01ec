"""Pretrain a tiny Harmon on the embedded world, from random weights to a base that draws and answers.

Three parts, in the order the real model got them: a byte-level tokenizer, the autoencoder (frozen from then
on), and the unified model under its own losses with random masks, text-to-image and image-to-text together.
The last part is the ordinary loop of `segros_train.loop` with method SFT.
"""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from segros_train.data.shapes_world import crowded_scene, render, sample_scene
from segros_train.files import append_jsonl, replace_file

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenizers import Tokenizer

    from segros_train.backbones.harmon.config import VaeConfig
    from segros_train.backbones.harmon.vae import AutoencoderKL
    from segros_train.data.shapes_world import Scene

__all__ = ["AutoencoderRecipe", "build_tokenizer", "latent_scale", "pretrain_autoencoder"]

logger = logging.getLogger(__name__)

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>")


@dataclass(frozen=True)
class AutoencoderRecipe:
    """How the autoencoder is pretrained.

    Most steps see quarters of crowded scenes, the last ones whole ordinary scenes.

    Attributes:
        steps: Number of updates.
        whole_steps: Updates on ordinary scenes, at the end.
        batch_size: Crowded scenes per update, each cut into four; then ordinary scenes per update.
        learning_rate: Peak rate of Adam, with a warm-up and a cosine to zero.
        kl_weight: Weight of the mean KL divergence per latent number.
        warmup_steps: Updates of linear warm-up.
        checkpoint_steps: Updates between saved states.
    """

    steps: int = 3000
    whole_steps: int = 300
    batch_size: int = 8
    learning_rate: float = 2e-3
    kl_weight: float = 1e-5
    warmup_steps: int = 100
    checkpoint_steps: int = 250


def build_tokenizer(texts: Sequence[str], *, vocab_size: int = 512) -> Tokenizer:
    """Train a byte-level BPE tokenizer, the kind Qwen2 has, whose words are those of `texts`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _pixels(scenes: Sequence[Scene]) -> Tensor:
    """Return rendered scenes, [scenes, 3, height, width] in [-1, 1]."""
    pixels = np.stack([np.asarray(render(scene)) for scene in scenes])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1


def _quarters(images: Tensor) -> Tensor:
    """Cut [B, 3, height, width] into [4 B, 3, height / 2, width / 2]."""
    halves = torch.cat(images.chunk(2, dim=2))
    return torch.cat(halves.chunk(2, dim=3))


def _autoencoder_batch(recipe: AutoencoderRecipe, step: int, seed: int) -> Tensor:
    indices = range(step * recipe.batch_size, (step + 1) * recipe.batch_size)
    if step < recipe.steps - recipe.whole_steps:
        images = _quarters(_pixels([crowded_scene(seed, index) for index in indices]))
    else:
        images = _pixels([sample_scene(seed, index) for index in indices])
    return images.contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def _prepare(model: AutoencoderKL) -> None:
    """Start as an almost linear and almost noiseless autoencoder, from which training takes minutes, not hours.

    Residual branches begin at zero, convolutions between levels keep the scale of their input, and the latent
    noise is small beside the latents.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            nn.init.orthogonal_(module.weight)
            nn.init.zeros_(module.bias)
            if name.endswith(("conv2", "proj_out")):
                nn.init.zeros_(module.weight)
    channels = model.quant_conv.out_channels // 2
    nn.init.zeros_(model.quant_conv.weight[channels:])
    nn.init.constant_(model.quant_conv.bias[channels:], -6.0)


def _autoencoder_loss(model: AutoencoderKL, images: Tensor, noise_rng: torch.Generator, kl_weight: float) -> Tensor:
    mean, logvar = model.moments(images)
    noise = torch.randn(mean.shape, generator=noise_rng)
    decoded = model.decode((mean + torch.exp(0.5 * logvar) * noise).permute(0, 2, 3, 1))
    error = decoded - images
    divergence = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
    return error.square().mean() + 0.1 * error.abs().mean() + kl_weight * divergence


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
    from segros_train.backbones.harmon.vae import AutoencoderKL

    torch.manual_seed(seed)
    model = AutoencoderKL(config)
    _prepare(model)
    model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.99))
    state, first = directory / "vae.pt", 0
    if state.exists():
        saved = torch.load(state, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        first = saved["step"]
    began = time.monotonic()
    for step in range(first, recipe.steps):
        warm = min(1.0, (step + 1) / recipe.warmup_steps)
        rate = recipe.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * step / recipe.steps))
        for group in optimizer.param_groups:
            group["lr"] = rate
        rng = torch.Generator().manual_seed(seed * 1_000_003 + step)
        loss = _autoencoder_loss(model, _autoencoder_batch(recipe, step, seed), rng, recipe.kl_weight)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        done = step + 1
        if done % 50 == 0:
            record = {"step": done, "loss": round(loss.item(), 5), "seconds": round(time.monotonic() - began, 1)}
            append_jsonl(directory / "vae.jsonl", record)
            logger.info("autoencoder %s", record)
        if done % recipe.checkpoint_steps == 0 or done == recipe.steps:
            content = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": done}
            replace_file(state, lambda path, content=content: torch.save(content, path))
    return model.eval()


@torch.no_grad()
def latent_scale(model: AutoencoderKL, *, num_scenes: int = 512, seed: int = 0) -> float:
    """Return the factor that gives the latents of ordinary scenes unit standard deviation."""
    starts = range(0, num_scenes, 64)
    parts = [model.encode(_pixels([sample_scene(seed, start + i) for i in range(64)])) for start in starts]
    return round(1 / torch.cat(parts).std().item(), 4)
