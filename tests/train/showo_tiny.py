"""A Show-o of a few thousand numbers, and batches for it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from steps import draws_of
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from segros_train.backbones.showo.adapter import Showo
from segros_train.backbones.showo.config import ClipConfig, LanguageConfig, ShowoConfig, VqConfig
from segros_train.backbones.showo.loading import fresh
from segros_train.types import BackboneCard, GenerationBatch, GenerationSettings, InstructionBatch, Turn, WeightFile

WORDS = "USER ASSISTANT a red blue green circle square is it big yes no what : . ? A B describe".split()
CONFIG = ShowoConfig(
    llm=LanguageConfig(hidden_size=32, intermediate_size=48, num_layers=2, num_heads=4, text_vocab_size=len(WORDS) + 3),
    vq=VqConfig(
        num_bits=4,
        ch=8,
        encoder_mult=(1, 1, 2),
        encoder_blocks=(1, 1, 1),
        decoder_mult=(1, 1, 2),
        decoder_blocks=(1, 1, 1),
        num_groups=4,
    ),
    clip=ClipConfig(hidden_size=16, intermediate_size=24, num_layers=3, num_heads=2, image_size_px=24, patch_size_px=8),
    max_caption_tokens=12,
    max_dialogue_tokens=24,
    system_prompt="describe it .",
)
CODES_ONLY = replace(CONFIG, clip=None)
CARD = BackboneCard(
    name="show-o-test",
    family="showo",
    title="Show-o-Test",
    config=CONFIG,
    world="shapes",
    image_size_px=16,
    settings=GenerationSettings(num_steps=4),
    recipe="none",
    data="none",
    weights=(
        WeightFile("model", "someone/show-o"),
        WeightFile("vq", "someone/magvitv2"),
        WeightFile("clip", "someone/clip"),
        WeightFile("tokenizer", "someone/language"),
    ),
)
NUM_CELLS = 16
NUM_PATCHES = 9


def word_tokenizer() -> Tokenizer:
    """Build a tokenizer of whole words and line breaks."""
    words = ["<unk>", "\n", *WORDS]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\n|\w+|[^\s\w]"), behavior="removed", invert=True)
    tokenizer.add_special_tokens(["<|endoftext|>"])
    return tokenizer


def tiny_showo(folder: Path, config: ShowoConfig = CONFIG, *, seed: int = 0, **fields: Any) -> Showo:
    """Build the model with random weights in which no layer is silent."""
    path = folder / "tokenizer.json"
    word_tokenizer().save(str(path))
    showo = fresh(replace(CARD, config=replace(config, **fields)), tokenizer=path, seed=seed)
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in showo.model.showo.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=rng))
    return showo


def generation_batch(*captions: str, seed: int = 0) -> GenerationBatch:
    """Build random images with captions."""
    rng = torch.Generator().manual_seed(seed)
    images = torch.rand(len(captions), 3, 16, 16, generator=rng) * 2 - 1
    ids = tuple(f"item-{index}" for index in range(len(captions)))
    return GenerationBatch(images, captions, ids, draws_of(len(captions)))


def instruction_batch(*dialogues: tuple[tuple[str, str], ...], seed: int = 0) -> InstructionBatch:
    """Build random images with dialogues given as pairs of question and answer."""
    rng = torch.Generator().manual_seed(seed)
    images = torch.rand(len(dialogues), 3, 24, 24, generator=rng) * 2 - 1
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
