"""The frozen parts of a tiny OpenUni, from random weights: its tokenizer, its autoencoder, its language model.

As in the real model, the image generator is trained on top of parts that others have trained: the autoencoder learns
to draw scenes again, the multimodal language model to answer questions about them and to describe them.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderDC
from tokenizers import Tokenizer
from torch import Tensor, nn

from segros_train.backbones.common.dialogues import IGNORED
from segros_train.backbones.common.instructions import INSTRUCTIONS
from segros_train.backbones.common.precision import mixed_precision
from segros_train.backbones.openuni.adapter import OpenUni
from segros_train.backbones.openuni.answering import next_token_loss
from segros_train.backbones.openuni.model import OpenUniModel
from segros_train.backbones.openuni.prompts import (
    ASSISTANT,
    CAPTION,
    END,
    NO_CAPTION,
    SYSTEM,
    TURN_SEPARATOR,
    USER,
    Dialogue,
    OpenUniTokenizer,
)
from segros_train.data.shapes.captions import caption, caption_question, corpus, question
from segros_train.data.shapes.world import CELL_PX, GRID, Scene, crowded_scene, sample_scene
from segros_train.pretraining import tiny
from segros_train.pretraining.encoded import kinds
from segros_train.pretraining.fitting import PartRecipe, fit
from segros_train.pretraining.tiny import pixels
from segros_train.types import InstructionBatch, Turn

__all__ = [
    "UnderstandingRecipe",
    "build_tokenizer",
    "latent_scale",
    "pretrain_autoencoder",
    "pretrain_decoder",
    "pretrain_understanding",
    "start_understanding",
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
OBJECT_WEIGHT = 5.0
"""Weight of the pixels of cells that hold an object, for the decoder by itself."""


@dataclass(frozen=True)
class UnderstandingRecipe(PartRecipe):
    """How the multimodal language model is pretrained.

    Attributes:
        num_texts: Dialogues about a caption alone, per update.
        text_weight: Weight of their loss.
        described_share: Share of pictures that are described rather than asked about.
    """

    num_texts: int = 128
    text_weight: float = 0.5
    described_share: float = 0.25


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
    device = model.meta_queries.device
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        _start_almost_linear(vae)
    vae.requires_grad_(True)

    def loss(step: int, rng: torch.Generator) -> Tensor:
        draw = sample_scene if step % 3 == 2 else crowded_scene
        images = pixels([draw(seed, step * recipe.batch_size + i) for i in range(recipe.batch_size)]).to(device)
        latents = vae.encode(images, return_dict=False)[0]
        deviation, mean = torch.std_mean(latents, dim=(0, 2, 3))
        noise = LATENT_NOISE * latents.std().detach() * torch.randn(latents.shape, generator=rng).to(device)
        error = vae.decode(latents + noise, return_dict=False)[0] - images
        spread = (mean.square() + (deviation - 1).square()).mean()
        return error.square().mean() + 0.1 * error.abs().mean() + LATENT_WEIGHT * spread

    fit(vae, list(vae.parameters()), loss, recipe, path=directory / "autoencoder.pt", seed=seed)
    vae.requires_grad_(False)


def pretrain_decoder(model: OpenUniModel, recipe: PartRecipe, *, directory: Path, seed: int) -> None:
    """Train the autoencoder's decoder by itself, in place, with more weight on objects; latents stay what they are.

    Args:
        model: Its autoencoder is done.
        recipe: How to train.
        directory: Where `decoder.pt` and `decoder.jsonl` go.
        seed: Seed of the scenes and the errors.
    """
    vae, device = model.vae, model.meta_queries.device
    vae.decoder.requires_grad_(True)

    def loss(step: int, rng: torch.Generator) -> Tensor:
        draw = sample_scene if step % 3 == 2 else crowded_scene
        scenes = [draw(seed + 2, step * recipe.batch_size + i) for i in range(recipe.batch_size)]
        images = pixels(scenes).to(device)
        with torch.no_grad():
            latents = vae.encode(images, return_dict=False)[0]
        noise = LATENT_NOISE * latents.std() * torch.randn(latents.shape, generator=rng).to(device)
        error = vae.decode(latents + noise, return_dict=False)[0] - images
        held = torch.stack([kinds(scene) for scene in scenes]).to(device).view(-1, 1, GRID, GRID) > 0
        weights = 1 + (OBJECT_WEIGHT - 1) * held.float().repeat_interleave(CELL_PX, 2).repeat_interleave(CELL_PX, 3)
        return (error.square().mean(1, keepdim=True) * weights).sum() / weights.sum() + 0.1 * error.abs().mean()

    fit(vae, list(vae.decoder.parameters()), loss, recipe, path=directory / "decoder.pt", seed=seed)
    vae.requires_grad_(False)


@torch.no_grad()
def latent_scale(model: OpenUniModel, *, num_scenes: int = 256, seed: int = 0) -> float:
    """Return the factor that gives the latents of ordinary scenes unit standard deviation."""
    starts, device = range(0, num_scenes, 64), model.meta_queries.device
    parts = [
        model.vae.encode(pixels([sample_scene(seed, start + i) for i in range(64)]).to(device), return_dict=False)[0]
        for start in starts
    ]
    return round(1 / torch.cat(parts).std().item(), 4)


@torch.no_grad()
def start_understanding(model: OpenUniModel, rng: torch.Generator) -> None:
    """Give a narrow language model and vision tower, on the CPU, weights that keep the scale of their input."""
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


def dialogue(scene: Scene, rng: np.random.Generator, *, described_share: float) -> Turn:
    """Draw a question about a scene with its answer, or a request to describe it with its caption."""
    if rng.random() < described_share:
        return Turn(INSTRUCTIONS[int(rng.integers(len(INSTRUCTIONS)))], caption(scene))
    return question(scene, rng)


def told_dialogue(tokenizer: OpenUniTokenizer, scene: Scene, rng: np.random.Generator) -> Dialogue:
    """Tokenise a question that the caption answers, behind the caption as it stands in a request for an image."""
    turn = caption_question(scene, rng)
    asked = tokenizer.ids(USER + CAPTION + caption(scene) + "\n" + turn.question + ASSISTANT)
    answered = tokenizer.ids(turn.answer + END + TURN_SEPARATOR)
    return Dialogue(tuple(asked + answered), (IGNORED,) * len(asked) + tuple(answered))


def pretrain_understanding(backbone: OpenUni, recipe: UnderstandingRecipe, *, directory: Path, seed: int) -> None:
    """Train the multimodal language model, in place, to answer and to describe.

    Some questions are about a caption alone: what stands where in a text is what the queries of drawing will read.

    Args:
        backbone: Its language model and vision tower, started, are trained, then frozen again.
        recipe: How to train.
        directory: Where `understanding.pt` and `understanding.jsonl` go.
        seed: Seed of the scenes and the questions.
    """
    model = backbone.model
    model.lmm.requires_grad_(True)

    def loss(step: int, rng: torch.Generator) -> Tensor:
        start = step * recipe.batch_size
        scenes = [sample_scene(seed + 1, start + i) for i in range(recipe.batch_size)]
        turns = [
            (dialogue(scene, np.random.default_rng((seed, start + i, 4)), described_share=recipe.described_share),)
            for i, scene in enumerate(scenes)
        ]
        ids = tuple(str(start + i) for i in range(recipe.batch_size))
        texts = [
            told_dialogue(backbone.tokenizer, scene, np.random.default_rng((seed, start + i, 6)))
            for i, scene in enumerate(scenes[: recipe.num_texts])
        ]
        with mixed_precision(backbone.device, torch.bfloat16):
            seen = backbone.i2t_loss(InstructionBatch(pixels(scenes), tuple(turns), ids))
            nothing = model.meta_queries.new_zeros(0, model.config.llm.hidden_size)
            told = next_token_loss(model, nothing, texts, image_id=backbone.tokenizer.image_id)
        return seen + recipe.text_weight * told

    parameters = [parameter for parameter in model.lmm.parameters() if parameter.requires_grad]
    fit(model.lmm, parameters, loss, recipe, path=directory / "understanding.pt", seed=seed)
    model.lmm.requires_grad_(False)
