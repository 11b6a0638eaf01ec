"""The frozen parts of a tiny OpenUni, from random weights: its tokenizer, its autoencoder, its language model.

As in the real model, the image generator is trained on top of parts that others have trained: the autoencoder learns
to draw scenes again, the multimodal language model to answer questions about them and to describe them.
"""

from __future__ import annotations

import functools
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderDC
from tokenizers import Tokenizer
from torch import Tensor, nn

from segros_train.backbones import tiny
from segros_train.backbones.instructions import INSTRUCTIONS
from segros_train.backbones.openuni.adapter import OpenUni
from segros_train.backbones.openuni.model import OpenUniModel
from segros_train.backbones.openuni.prompts import CAPTION, NO_CAPTION, SYSTEM
from segros_train.backbones.tiny import pixels
from segros_train.data.shapes_language import caption, corpus, question
from segros_train.data.shapes_world import Scene, crowded_scene, sample_scene
from segros_train.files import append_jsonl, replace_file
from segros_train.types import InstructionBatch, Turn

__all__ = [
    "PartRecipe",
    "build_tokenizer",
    "fit",
    "latent_scale",
    "pretrain_autoencoder",
    "pretrain_understanding",
]

logger = logging.getLogger(__name__)

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<img>",
    "</img>",
    "<IMG_CONTEXT>",
)
LATENT_NOISE = 0.1
"""Deviation of the error of latents that the decoder learns to forgive, in deviations of the latents."""
LATENT_WEIGHT = 0.01
DESCRIBED_SHARE = 0.4


@dataclass(frozen=True)
class PartRecipe:
    """How one part is pretrained with AdamW.

    Attributes:
        steps: Updates.
        batch_size: Scenes per update.
        learning_rate: Peak rate, with a linear warm-up and a cosine to zero.
        warmup_steps: Updates of the warm-up.
        weight_decay: On parameters of more than one dimension.
        checkpoint_steps: Updates between saved states.
    """

    steps: int
    batch_size: int
    learning_rate: float
    warmup_steps: int = 100
    weight_decay: float = 0.01
    checkpoint_steps: int = 200

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        warm = min(1.0, (step + 1) / self.warmup_steps)
        return self.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * step / self.steps))


def fit(
    modules: nn.Module,
    parameters: Sequence[nn.Parameter],
    loss: Callable[[int, torch.Generator], Tensor],
    recipe: PartRecipe,
    *,
    path: Path,
    seed: int,
    after: Callable[[], None] | None = None,
) -> None:
    """Minimise a loss, going on from the state in `path` if a stopped run left one there.

    Args:
        modules: What the state file keeps the weights of.
        parameters: What is trained.
        loss: Of a step's number and a generator that depends on seed and number alone.
        recipe: How to train.
        path: State file; a log of the same stem lies beside it.
        seed: Seed of the steps.
        after: Called after every update.
    """
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98))
    first = 0
    if path.exists():
        saved = torch.load(path, weights_only=True)
        modules.load_state_dict(saved["model"])
        first = saved["step"]
        if first < recipe.steps:
            optimizer.load_state_dict(saved["optimizer"])
    began = time.monotonic()
    losses: list[float] = []
    for step in range(first, recipe.steps):
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate(step)
        value = loss(step, torch.Generator().manual_seed(seed * 1_000_003 + step))
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if after is not None:
            after()
        done = step + 1
        losses.append(value.item())
        if done % 50 == 0:
            mean = sum(losses) / len(losses)
            record = {"step": done, "loss": round(mean, 5), "seconds": round(time.monotonic() - began, 1)}
            append_jsonl(path.with_suffix(".jsonl"), record)
            logger.info("%s %s", path.stem, record)
            losses = []
        if done % recipe.checkpoint_steps == 0 or done == recipe.steps:
            state: dict[str, Any] = {"model": modules.state_dict(), "step": done}
            state["optimizer"] = optimizer.state_dict()
            replace_file(path, functools.partial(torch.save, state))


def build_tokenizer(*, vocab_size: int) -> Tokenizer:
    """Train a byte-level BPE tokenizer whose words are those of the world and of the templates."""
    template = [
        "system\n",
        "user\n",
        "assistant\n",
        f"\nuser\n{CAPTION}",
        f"\nuser\n{NO_CAPTION}",
        *INSTRUCTIONS,
    ]
    # One token for the sentence that every dialogue starts with: it would else be most of a question.
    texts = corpus(4000) + template * 200
    tokenizer = tiny.build_tokenizer(texts, vocab_size=vocab_size - 1, special_tokens=SPECIAL_TOKENS)
    tokenizer.add_tokens([SYSTEM])
    return tokenizer


@torch.no_grad()
def _start_almost_linear(model: AutoencoderDC) -> None:
    """Let residual branches begin at zero and convolutions keep the scale of their input."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            if module.groups == 1:
                nn.init.orthogonal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for name, parameter in model.named_parameters():
        if name.endswith(("norm.weight", "norm_out.weight")) and "decoder.norm_out" not in name:
            nn.init.zeros_(parameter)


def pretrain_autoencoder(model: OpenUniModel, recipe: PartRecipe, *, directory: Path, seed: int) -> None:
    """Train the autoencoder, in place, on crowded scenes with every third batch an ordinary one.

    Objects cover a few percent of an ordinary scene. Latents are pulled towards mean 0 and deviation 1, and the
    decoder sees them with an error, as a sampler makes one.

    Args:
        model: Its autoencoder is trained.
        recipe: How to train.
        directory: Where `autoencoder.pt` and `autoencoder.jsonl` go.
        seed: Seed of the weights, the scenes and the errors.
    """
    vae = model.vae
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        _start_almost_linear(vae)
    vae.requires_grad_(True)

    def loss(step: int, rng: torch.Generator) -> Tensor:
        draw = sample_scene if step % 3 == 2 else crowded_scene
        images = pixels([draw(seed, step * recipe.batch_size + i) for i in range(recipe.batch_size)])
        latents = vae.encode(images, return_dict=False)[0]
        deviation, mean = torch.std_mean(latents, dim=(0, 2, 3))
        noise = LATENT_NOISE * latents.std().detach() * torch.randn(latents.shape, generator=rng)
        error = vae.decode(latents + noise, return_dict=False)[0] - images
        spread = (mean.square() + (deviation - 1).square()).mean()
        return error.square().mean() + 0.1 * error.abs().mean() + LATENT_WEIGHT * spread

    fit(vae, list(vae.parameters()), loss, recipe, path=directory / "autoencoder.pt", seed=seed)
    vae.requires_grad_(False)


@torch.no_grad()
def latent_scale(model: OpenUniModel, *, num_scenes: int = 256, seed: int = 0) -> float:
    """Return the factor that gives the latents of ordinary scenes unit standard deviation."""
    starts = range(0, num_scenes, 64)
    parts = [
        model.vae.encode(pixels([sample_scene(seed, start + i) for i in range(64)]), return_dict=False)[0]
        for start in starts
    ]
    return round(1 / torch.cat(parts).std().item(), 4)


@torch.no_grad()
def _start_lively(model: OpenUniModel, rng: torch.Generator) -> None:
    """Give a narrow language model and vision tower weights that keep the scale of their input."""
    for parameter in model.lmm.parameters():
        if parameter.dim() == 2:
            nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5, generator=rng)
    nn.init.normal_(model.language.embed_tokens.weight, std=0.1, generator=rng)
    nn.init.normal_(model.lmm.lm_head.weight, std=0.02, generator=rng)
    embeddings = model.lmm.model.vision_tower.embeddings
    for learned in (embeddings.cls_token, embeddings.position_embeddings):
        nn.init.normal_(learned, std=0.2, generator=rng)
    for layer in model.lmm.model.vision_tower.encoder.layer:
        layer.lambda_1.fill_(0.5)
        layer.lambda_2.fill_(0.5)


def dialogue(scene: Scene, rng: np.random.Generator) -> Turn:
    """Draw a question about a scene with its answer, or a request to describe it with its caption."""
    if rng.random() < DESCRIBED_SHARE:
        return Turn(INSTRUCTIONS[int(rng.integers(len(INSTRUCTIONS)))], caption(scene))
    return question(scene, rng)


def pretrain_understanding(backbone: OpenUni, recipe: PartRecipe, *, directory: Path, seed: int) -> None:
    """Train the multimodal language model, in place, to answer and to describe.

    Args:
        backbone: Its language model and vision tower are trained, then frozen again.
        recipe: How to train.
        directory: Where `understanding.pt` and `understanding.jsonl` go.
        seed: Seed of the weights, the scenes and the questions.
    """
    model = backbone.model
    _start_lively(model, torch.Generator().manual_seed(seed))
    model.lmm.requires_grad_(True)

    def loss(step: int, rng: torch.Generator) -> Tensor:
        start = step * recipe.batch_size
        scenes = [sample_scene(seed + 1, start + i) for i in range(recipe.batch_size)]
        turns = [(dialogue(scene, np.random.default_rng((seed, start + i, 4))),) for i, scene in enumerate(scenes)]
        ids = tuple(str(start + i) for i in range(recipe.batch_size))
        return backbone.i2t_loss(InstructionBatch(pixels(scenes), tuple(turns), ids))

    parameters = [parameter for parameter in model.lmm.parameters() if parameter.requires_grad]
    fit(model.lmm, parameters, loss, recipe, path=directory / "understanding.pt", seed=seed)
    model.lmm.requires_grad_(False)
