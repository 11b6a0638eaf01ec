"""The frozen parts of a tiny OpenUni, from random weights: its tokenizer, its autoencoder, its language model.

As in the real model, the image generator is trained on top of parts that others have trained: the autoencoder learns
to draw scenes again, the multimodal language model to answer questions about them and to describe them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from pretraining.fitting import PartRecipe, Run, fit
from pretraining.scenes import SCENES_SEED, kinds, pixels, start_almost_linear
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
from segros_train.data.shapes import tokenizer as shapes_tokenizer
from segros_train.data.shapes.captions import caption, caption_question, corpus, question
from segros_train.data.shapes.world import CELL_PX, GRID, Scene, crowded_scene, sample_scene
from segros_train.types import InstructionBatch, Turn

__all__ = [
    "UnderstandingRecipe",
    "build_tokenizer",
    "pretrain_autoencoder",
    "pretrain_understanding",
    "start_understanding",
]

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>")
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


AUTOENCODER = PartRecipe(steps=3600, batch_size=8, learning_rate=2e-3)
DECODER = PartRecipe(steps=3400, batch_size=8, learning_rate=1e-3)
UNDERSTANDING = UnderstandingRecipe(steps=4700, batch_size=256, learning_rate=1.5e-3, held_share=0.7)


def build_tokenizer(*, vocab_size: int, num_scenes: int = 4000) -> Tokenizer:
    """Train a byte-level BPE tokenizer whose words are those of the world and of the templates."""
    template = ["system\n", "user\n", "assistant\n", f"\nuser\n{CAPTION}", f"\nuser\n{NO_CAPTION}", *INSTRUCTIONS]
    # One token for the sentence that every dialogue starts with: it would else be most of a question.
    texts = corpus(num_scenes) + template * 200
    tokenizer = shapes_tokenizer.build_tokenizer(texts, vocab_size=vocab_size - 1, special_tokens=SPECIAL_TOKENS)
    tokenizer.add_tokens([SYSTEM])
    return tokenizer


def pretrain_autoencoder(model: OpenUniModel, run: Run) -> None:
    """Train the autoencoder, in place, then its decoder by itself, which changes no latent.

    Scenes are crowded, every third batch an ordinary one: objects cover a few percent of an ordinary scene. Latents
    are pulled towards mean 0 and deviation 1, and the decoder sees them with an error, as a sampler makes one.
    """
    vae, device = model.vae, model.meta_queries.device
    start_almost_linear(vae, run.seed, zeroed=(".norm", "attn.norm_out"))
    vae.requires_grad_(True)

    def decoded(
        recipe: PartRecipe, step: int, rng: torch.Generator, *, seed: int, frozen: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the latents of a step, the error of its images, and the cells of its scenes that hold an object."""
        draw = sample_scene if step % 3 == 2 else crowded_scene
        scenes = [draw(seed, step * recipe.batch_size + i) for i in range(recipe.batch_size)]
        images = pixels(scenes).to(device)
        with torch.set_grad_enabled(not frozen):
            latents = vae.encode(images, return_dict=False)[0]
        noise = LATENT_NOISE * latents.std().detach() * torch.randn(latents.shape, generator=rng).to(device)
        error = vae.decode(latents + noise, return_dict=False)[0] - images
        held = torch.stack([kinds(scene) for scene in scenes]).to(device).view(-1, 1, GRID, GRID) > 0
        return latents, error, held

    recipe = run.of(AUTOENCODER)

    def loss(step: int, rng: torch.Generator) -> Tensor:
        latents, error, _ = decoded(recipe, step, rng, seed=run.seed, frozen=False)
        deviation, mean = torch.std_mean(latents, dim=(0, 2, 3))
        away = (mean.square() + (deviation - 1).square()).mean()
        return error.square().mean() + 0.1 * error.abs().mean() + LATENT_WEIGHT * away

    fit("autoencoder", vae, loss, recipe, run)
    alone = run.of(DECODER)

    def decoder_loss(step: int, rng: torch.Generator) -> Tensor:
        _, error, held = decoded(alone, step, rng, seed=run.seed + 2, frozen=True)
        weights = 1 + (OBJECT_WEIGHT - 1) * held.float().repeat_interleave(CELL_PX, 2).repeat_interleave(CELL_PX, 3)
        return (error.square().mean(1, keepdim=True) * weights).sum() / weights.sum() + 0.1 * error.abs().mean()

    fit("decoder", vae.decoder, decoder_loss, alone, run)
    vae.requires_grad_(False)


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


def _turn(scene: Scene, rng: np.random.Generator, *, described_share: float) -> Turn:
    """Draw a question about a scene with its answer, or a request to describe it with its caption."""
    if rng.random() < described_share:
        return Turn(INSTRUCTIONS[int(rng.integers(len(INSTRUCTIONS)))], caption(scene))
    return question(scene, rng)


def _caption_dialogue(tokenizer: OpenUniTokenizer, scene: Scene, rng: np.random.Generator) -> Dialogue:
    """Tokenise a question that the caption answers, behind the caption as it stands in a request for an image."""
    turn = caption_question(scene, rng)
    asked = tokenizer.ids(USER + CAPTION + caption(scene) + "\n" + turn.question + ASSISTANT)
    answered = tokenizer.ids(turn.answer + END + TURN_SEPARATOR)
    return Dialogue(tuple(asked + answered), (IGNORED,) * len(asked) + tuple(answered))


def pretrain_understanding(backbone: OpenUni, run: Run) -> None:
    """Train the multimodal language model, in place, to answer and to describe; then freeze it again.

    Some questions are about a caption alone: what stands where in a text is what the queries of drawing will read.
    """
    model, recipe = backbone.model, run.of(UNDERSTANDING)
    model.lmm.requires_grad_(True)

    def loss(step: int, _: torch.Generator) -> Tensor:
        numbers = range(step * recipe.batch_size, (step + 1) * recipe.batch_size)
        scenes = [sample_scene(SCENES_SEED + 1, number) for number in numbers]
        rngs = [np.random.default_rng((run.seed, number, 4)) for number in numbers]
        turns = [
            (_turn(scene, rng, described_share=recipe.described_share),)
            for scene, rng in zip(scenes, rngs, strict=True)
        ]
        texts = [
            _caption_dialogue(backbone.tokenizer, scene, rng)
            for scene, rng in zip(scenes[: recipe.num_texts], rngs, strict=False)
        ]
        with mixed_precision(backbone.device, torch.bfloat16):
            seen = backbone.i2t_loss(InstructionBatch(pixels(scenes), tuple(turns), tuple(map(str, numbers))))
            nothing = model.meta_queries.new_zeros(0, model.config.llm.hidden_size)
            read = next_token_loss(model, nothing, texts, image_id=backbone.tokenizer.image_id)
        return seen + recipe.text_weight * read

    fit("understanding", model.lmm, loss, recipe, run)
    model.lmm.requires_grad_(False)
