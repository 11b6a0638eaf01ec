"""An OpenUni of a few thousand numbers, and batches for it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from steps import draws_of

from pretraining.openuni_parts import build_tokenizer
from segros_train.backbones.openuni.adapter import OpenUni
from segros_train.backbones.openuni.config import (
    AutoencoderConfig,
    ConnectorConfig,
    LanguageConfig,
    OpenUniConfig,
    SanaConfig,
    VisionConfig,
)
from segros_train.backbones.openuni.loading import fresh
from segros_train.types import BackboneCard, GenerationBatch, GenerationSettings, InstructionBatch, Turn, WeightFile

CONFIG = OpenUniConfig(
    llm=LanguageConfig(
        hidden_size=32,
        intermediate_size=48,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        vocab_size=420,
        max_positions=512,
    ),
    connector=ConnectorConfig(intermediate_size=40, num_heads=2, num_layers=1),
    sana=SanaConfig(num_heads=2, head_dim=16, num_layers=2, num_cross_heads=2, cross_head_dim=16, caption_channels=24),
    vision=VisionConfig(
        hidden_size=16, intermediate_size=24, num_layers=1, num_heads=2, image_size_px=96, patch_size_px=8
    ),
    autoencoder=AutoencoderConfig(
        latent_channels=4,
        channels=(8, 8, 8, 8, 8),
        encoder_layers=(1, 1, 1, 1, 1),
        decoder_layers=(1, 1, 1, 1, 1),
        num_residual_levels=4,
        attention_head_dim=4,
        scale=1.0,
    ),
    num_queries=5,
    max_tiles=1,
)
CARD = BackboneCard(
    name="openuni-test",
    family="openuni",
    title="OpenUni-Test",
    config=CONFIG,
    world="shapes",
    image_size_px=96,
    settings=GenerationSettings(num_steps=3),
    recipe="none",
    data="none",
    understanding_is_frozen=True,
)
PUBLISHED = (
    WeightFile("model", "someone/openuni", "openuni.pth"),
    WeightFile("lmm", "someone/InternVL-hf"),
    WeightFile("tokenizer", "someone/InternVL-hf"),
    WeightFile("transformer", "someone/Sana", "transformer/diffusion_pytorch_model.safetensors"),
    WeightFile("scheduler", "someone/Sana", "scheduler/scheduler_config.json"),
    WeightFile("vae", "someone/dc-ae", "diffusion_pytorch_model.safetensors"),
    WeightFile("vae-config", "someone/dc-ae", "config.json"),
)
NUM_CELLS = NUM_VISUAL = 36


def tiny_openuni(folder: Path, config: OpenUniConfig = CONFIG, *, seed: int = 0) -> OpenUni:
    """Build the model with random weights in which no layer is silent."""
    path = folder / "tokenizer.json"
    if not path.exists():
        build_tokenizer(vocab_size=config.llm.vocab_size).save(str(path))
    openuni = fresh(replace(CARD, config=config), tokenizer=path, seed=seed)
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in openuni.model.parameters():
            spread = 0.3 if parameter.dim() == 1 else parameter[0].numel() ** -0.5
            parameter += spread * torch.randn(parameter.shape, generator=rng)
    return openuni


def changed(**fields: Any) -> OpenUniConfig:
    """Return the configuration with some fields changed."""
    return replace(CONFIG, **fields)


def generation_batch(*captions: str, seed: int = 0) -> GenerationBatch:
    """Build random images with captions."""
    images = torch.rand(len(captions), 3, 96, 96, generator=rng(seed)) * 2 - 1
    ids = tuple(f"item-{index}" for index in range(len(captions)))
    return GenerationBatch(images, captions, ids, draws_of(len(captions)))


def instruction_batch(*dialogues: tuple[tuple[str, str], ...], seed: int = 0) -> InstructionBatch:
    """Build random images with dialogues given as pairs of question and answer."""
    images = generation_batch(*["" for _ in dialogues], seed=seed).images
    turns = tuple(tuple(Turn(*pair) for pair in dialogue) for dialogue in dialogues)
    return InstructionBatch(images, turns, tuple(map(str, range(len(dialogues)))))


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def picture(seed: int, width: int = 96, height: int = 96) -> Image.Image:
    """Draw noise."""
    levels = torch.randint(256, (height, width, 3), generator=rng(seed), dtype=torch.uint8)
    return Image.fromarray(levels.numpy())
