"""A Harmon of a few thousand numbers, and batches for it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from steps import draws_of
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from segros_train.backbones.harmon.adapter import Harmon
from segros_train.backbones.harmon.config import DiffusionConfig, HarmonConfig, LanguageConfig, MarConfig, VaeConfig
from segros_train.backbones.harmon.loading import fresh
from segros_train.types import BackboneCard, GenerationBatch, GenerationSettings, InstructionBatch, Turn, WeightFile

WORDS = "user assistant Generate an image a red blue green circle square is it big yes no what : . ? A B".split()
CONFIG = HarmonConfig(
    llm=LanguageConfig(
        hidden_size=32,
        intermediate_size=48,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        vocab_size=len(WORDS) + 4,
        max_positions=256,
    ),
    mar=MarConfig(
        encoder_width=24,
        encoder_depth=2,
        encoder_heads=3,
        decoder_width=24,
        decoder_depth=2,
        decoder_heads=3,
        diffusion=DiffusionConfig(depth=2, width=32, num_sampling_steps=5, batch_mul=2),
        base_grid=(4, 4),
        buffer_size=3,
        attention_dropout=0.0,
        projection_dropout=0.0,
        num_classes=2,
    ),
    vae=VaeConfig(embed_dim=4, ch=8, ch_mult=(1, 1, 2), num_res_blocks=1, num_groups=4, encoder_attention_levels=(2,)),
)
CARD = BackboneCard(
    name="harmon-test",
    family="harmon",
    title="Harmon-Test",
    config=CONFIG,
    world="shapes",
    image_size_px=16,
    settings=GenerationSettings(num_steps=4),
    recipe="none",
    data="none",
    weights=(
        WeightFile("model", "someone/harmon", "harmon.pth"),
        WeightFile("vae", "someone/harmon", "kl16.ckpt"),
        WeightFile("tokenizer", "someone/language"),
    ),
)
NUM_CELLS = 16


def word_tokenizer() -> Tokenizer:
    """Build a tokenizer of whole words and line breaks."""
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["<unk>", "\n", *WORDS])}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\n|\w+|[^\s\w]"), behavior="removed", invert=True)
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    return tokenizer


def tiny_harmon(folder: Path, config: HarmonConfig = CONFIG, *, seed: int = 0) -> Harmon:
    """Build the model with random weights in which no layer is silent."""
    path = folder / "tokenizer.json"
    word_tokenizer().save(str(path))
    harmon = fresh(replace(CARD, config=config), tokenizer=path, seed=seed)
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in harmon.model.mar.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=rng) / math.sqrt(parameter.shape[-1])
        for parameter in harmon.model.llm.model.parameters():
            parameter *= 10 if parameter.dim() == 2 else 1
    return harmon


def changed(**fields: Any) -> HarmonConfig:
    """Return the configuration with fields of its masked encoder and decoder changed."""
    return replace(CONFIG, mar=replace(CONFIG.mar, **fields))


def generation_batch(*captions: str, seed: int = 0) -> GenerationBatch:
    """Build random images with captions."""
    rng = torch.Generator().manual_seed(seed)
    images = torch.rand(len(captions), 3, 16, 16, generator=rng) * 2 - 1
    ids = tuple(f"item-{index}" for index in range(len(captions)))
    return GenerationBatch(images, captions, ids, draws_of(len(captions)))


def instruction_batch(*dialogues: tuple[tuple[str, str], ...], seed: int = 0) -> InstructionBatch:
    """Build random images with dialogues given as pairs of question and answer."""
    images = generation_batch(*["" for _ in dialogues], seed=seed).images
    turns = tuple(tuple(Turn(*pair) for pair in dialogue) for dialogue in dialogues)
    return InstructionBatch(images, turns, tuple(map(str, range(len(dialogues)))))


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def masks(size: int, num_masked: int, *, seed: int = 0) -> torch.Tensor:
    """Draw masks [size, N] of equally many hidden cells."""
    return torch.rand(size, NUM_CELLS, generator=rng(seed)).argsort(dim=1) < num_masked


def picture(seed: int, width: int = 16, height: int = 16) -> Image.Image:
    """Draw noise."""
    levels = torch.randint(256, (height, width, 3), generator=rng(seed), dtype=torch.uint8)
    return Image.fromarray(levels.numpy())
