"""Unified multimodal models that can be trained and evaluated."""

from dataclasses import replace

from segros_train.backbones.harmon.config import DiffusionConfig, HarmonConfig, LanguageConfig, MarConfig
from segros_train.types import BackboneCard, GenerationSettings, WeightFile

harmon_05b = BackboneCard(
    name="harmon-0.5b",
    family="harmon",
    title="Harmon-0.5B",
    config=HarmonConfig(
        llm=LanguageConfig(hidden_size=896, intermediate_size=4864, num_layers=24, num_heads=14, num_kv_heads=2),
        mar=MarConfig(
            encoder_width=768,
            encoder_depth=12,
            encoder_heads=12,
            decoder_width=768,
            decoder_depth=12,
            decoder_heads=12,
            diffusion=DiffusionConfig(depth=6, width=1024),
        ),
    ),
    world="photo",
    image_size_px=512,
    settings=GenerationSettings(num_steps=64, cfg_scale=3.0, cfg_schedule="constant", temperature=1.0),
    recipe="harmon-0.5b",
    data="midjourney-v6",
    weights=(
        WeightFile(role="model", repo="wusize/harmon", filename="harmon_0.5b.pth"),
        WeightFile(role="vae", repo="wusize/harmon", filename="kl16.ckpt"),
        WeightFile(role="tokenizer", repo="Qwen/Qwen2.5-0.5B-Instruct"),
    ),
    licence="NTU S-Lab License 1.0 (non-commercial)",
)
harmon_15b = replace(
    harmon_05b,
    name="harmon-1.5b",
    title="Harmon-1.5B",
    config=HarmonConfig(
        llm=LanguageConfig(hidden_size=1536, intermediate_size=8960, num_layers=28, num_heads=12, num_kv_heads=2),
        mar=MarConfig(
            encoder_width=1280,
            encoder_depth=20,
            encoder_heads=16,
            decoder_width=1280,
            decoder_depth=20,
            decoder_heads=16,
            diffusion=DiffusionConfig(depth=12, width=1536),
        ),
    ),
    recipe="harmon-1.5b",
    data="blip3o-60k",
    weights=(
        WeightFile(role="model", repo="wusize/harmon", filename="harmon_1.5b.pth"),
        WeightFile(role="vae", repo="wusize/harmon", filename="kl16.ckpt"),
        WeightFile(role="tokenizer", repo="Qwen/Qwen2.5-1.5B-Instruct"),
    ),
)
