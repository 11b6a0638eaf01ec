"""Unified multimodal models that can be trained and evaluated."""

from dataclasses import replace

from segros_train.backbones.harmon.config import DiffusionConfig, HarmonConfig, LanguageConfig, MarConfig, VaeConfig
from segros_train.backbones.openuni.config import (
    AutoencoderConfig,
    ConnectorConfig,
    OpenUniConfig,
    SanaConfig,
    VisionConfig,
)
from segros_train.backbones.openuni.config import LanguageConfig as OpenUniLanguageConfig
from segros_train.backbones.showo.config import ClipConfig, ShowoConfig, VqConfig
from segros_train.backbones.showo.config import LanguageConfig as PhiConfig
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
harmon_tiny = BackboneCard(
    name="harmon-tiny",
    family="harmon",
    title="Harmon-tiny",
    config=HarmonConfig(
        llm=LanguageConfig(
            hidden_size=160,
            intermediate_size=384,
            num_layers=3,
            num_heads=5,
            num_kv_heads=1,
            vocab_size=768,
            max_positions=1024,
        ),
        mar=MarConfig(
            encoder_width=160,
            encoder_depth=2,
            encoder_heads=5,
            decoder_width=160,
            decoder_depth=3,
            decoder_heads=5,
            diffusion=DiffusionConfig(
                depth=3,
                width=160,
                num_sampling_steps=25,
                last_sampling_timestep=950,
                batch_mul=2,
                max_timestep_weight=8.0,
            ),
            base_grid=(6, 6),
            buffer_size=16,
            mask_ratio_min=0.03,
            mask_ratio_deviation=0.5,
            attention_dropout=0.0,
            projection_dropout=0.0,
            num_classes=1,
        ),
        vae=VaeConfig(embed_dim=16, ch=8, ch_mult=(1, 2, 4, 4, 8), num_res_blocks=1, num_groups=8),
        vae_scale=1.0,
    ),
    world="shapes",
    image_size_px=96,
    settings=GenerationSettings(num_steps=12, cfg_scale=4.0, batch_size=64),
    recipe="harmon-tiny",
    data="shapes",
    licence="Apache-2.0",
    notes="Pretrained on the embedded world, part by part; docs/harmon-tiny.md tells which parts under which settings.",
)

# OpenUni. Sizes of the generators are those of the published Sana models at 512 px.
openuni_16b = BackboneCard(
    name="openuni-1.6b",
    family="openuni",
    title="OpenUni-1.6B",
    config=OpenUniConfig(
        llm=OpenUniLanguageConfig(hidden_size=896, intermediate_size=4864, num_layers=24, num_heads=14, num_kv_heads=2),
        connector=ConnectorConfig(intermediate_size=3072, num_heads=14),
        sana=SanaConfig(num_heads=36, head_dim=32, num_layers=28, num_cross_heads=16, cross_head_dim=72),
    ),
    world="photo",
    image_size_px=512,
    settings=GenerationSettings(num_steps=20, cfg_scale=4.5),
    recipe="openuni-1.6b",
    data="midjourney-v6",
    weights=(
        WeightFile(
            role="model", repo="wusize/openuni", filename="openuni_b_internvl3_1b_sana_0_6b_512_hf_text2image23m.pth"
        ),
        WeightFile(role="lmm", repo="OpenGVLab/InternVL3-1B-hf"),
        WeightFile(role="tokenizer", repo="OpenGVLab/InternVL3-1B-hf"),
        WeightFile(
            role="transformer",
            repo="Efficient-Large-Model/Sana_600M_512px_diffusers",
            filename="transformer/diffusion_pytorch_model.safetensors",
        ),
        WeightFile(
            role="scheduler",
            repo="Efficient-Large-Model/Sana_600M_512px_diffusers",
            filename="scheduler/scheduler_config.json",
        ),
        WeightFile(
            role="vae",
            repo="mit-han-lab/dc-ae-f32c32-sana-1.1-diffusers",
            filename="diffusion_pytorch_model.safetensors",
        ),
        WeightFile(role="vae-config", repo="mit-han-lab/dc-ae-f32c32-sana-1.1-diffusers", filename="config.json"),
    ),
    licence="NTU S-Lab License 1.0 (non-commercial)",
    understanding_is_frozen=True,
    notes="The base without distillation from GPT-4o (text2image23m), as the paper takes it.",
)
openuni_36b = replace(
    openuni_16b,
    name="openuni-3.6b",
    title="OpenUni-3.6B",
    config=OpenUniConfig(
        llm=OpenUniLanguageConfig(
            hidden_size=1536, intermediate_size=8960, num_layers=28, num_heads=12, num_kv_heads=2
        ),
        connector=ConnectorConfig(intermediate_size=8960, num_heads=24),
        sana=SanaConfig(num_heads=70, head_dim=32, num_layers=20, num_cross_heads=20, cross_head_dim=112),
    ),
    recipe="openuni-3.6b",
    weights=(
        WeightFile(
            role="model", repo="wusize/openuni", filename="openuni_l_internvl3_2b_sana_1_6b_512_hf_text2image23m.pth"
        ),
        WeightFile(role="lmm", repo="OpenGVLab/InternVL3-2B-hf"),
        WeightFile(role="tokenizer", repo="OpenGVLab/InternVL3-2B-hf"),
        WeightFile(
            role="transformer",
            repo="Efficient-Large-Model/Sana_1600M_512px_diffusers",
            filename="transformer/diffusion_pytorch_model.safetensors",
        ),
        WeightFile(
            role="scheduler",
            repo="Efficient-Large-Model/Sana_1600M_512px_diffusers",
            filename="scheduler/scheduler_config.json",
        ),
        WeightFile(
            role="vae",
            repo="mit-han-lab/dc-ae-f32c32-sana-1.1-diffusers",
            filename="diffusion_pytorch_model.safetensors",
        ),
        WeightFile(role="vae-config", repo="mit-han-lab/dc-ae-f32c32-sana-1.1-diffusers", filename="config.json"),
    ),
)
openuni_tiny = BackboneCard(
    name="openuni-tiny",
    family="openuni",
    title="OpenUni-tiny",
    config=OpenUniConfig(
        llm=OpenUniLanguageConfig(
            hidden_size=128,
            intermediate_size=256,
            num_layers=3,
            num_heads=4,
            num_kv_heads=2,
            vocab_size=640,
            max_positions=1024,
        ),
        connector=ConnectorConfig(intermediate_size=192, num_heads=4, num_layers=2),
        sana=SanaConfig(
            num_heads=9, head_dim=16, num_layers=6, num_cross_heads=6, cross_head_dim=24, caption_channels=128
        ),
        vision=VisionConfig(
            hidden_size=96, intermediate_size=192, num_layers=3, num_heads=4, image_size_px=96, patch_size_px=8
        ),
        autoencoder=AutoencoderConfig(
            latent_channels=16,
            channels=(8, 16, 32, 64, 64),
            encoder_layers=(1, 1, 1, 1, 1),
            decoder_layers=(1, 1, 1, 1, 1),
            num_residual_levels=4,
            attention_head_dim=16,
            scale=1.0157,
        ),
        num_queries=24,
        max_tiles=1,
    ),
    world="shapes",
    image_size_px=96,
    settings=GenerationSettings(num_steps=20, cfg_scale=3.0, batch_size=64),
    recipe="openuni-tiny",
    data="shapes",
    licence="Apache-2.0",
    understanding_is_frozen=True,
    notes="Pretrained on the embedded world; docs/openuni-tiny.md tells what the command does not do again.",
)

show_o_256 = BackboneCard(
    name="show-o-256",
    family="showo",
    title="Show-o-256",
    config=ShowoConfig(),
    world="photo",
    image_size_px=256,
    settings=GenerationSettings(num_steps=50, cfg_scale=6.0),
    recipe="show-o-256",
    data="midjourney-v6",
    weights=(
        WeightFile(role="model", repo="showlab/show-o-w-clip-vit"),
        WeightFile(role="vq", repo="showlab/magvitv2"),
        WeightFile(role="clip", repo="openai/clip-vit-large-patch14-336"),
        WeightFile(role="tokenizer", repo="microsoft/phi-1_5"),
    ),
    licence="Apache-2.0",
    notes="Guidance 5 (cfg_scale 6) and 50 steps are upstream's README; its GenEval settings were not published.",
)
show_o_512 = replace(
    show_o_256,
    name="show-o-512",
    title="Show-o-512",
    image_size_px=512,
    recipe="show-o-512",
    weights=(
        WeightFile(role="model", repo="showlab/show-o-w-clip-vit-512x512"),
        WeightFile(role="vq", repo="showlab/magvitv2"),
        WeightFile(role="clip", repo="openai/clip-vit-large-patch14-336"),
        WeightFile(role="tokenizer", repo="microsoft/phi-1_5"),
    ),
)
show_o_tiny = BackboneCard(
    name="show-o-tiny",
    family="showo",
    title="Show-o-tiny",
    config=ShowoConfig(
        llm=PhiConfig(
            hidden_size=160,
            intermediate_size=448,
            num_layers=4,
            num_heads=5,
            text_vocab_size=768,
            max_positions=512,
        ),
        vq=VqConfig(
            num_bits=10,
            ch=8,
            encoder_mult=(1, 2, 4, 4, 8),
            encoder_blocks=(1, 1, 1, 1, 1),
            decoder_mult=(1, 2, 4, 4, 8),
            decoder_blocks=(1, 1, 2, 2, 2),
            num_groups=8,
        ),
        clip=ClipConfig(
            hidden_size=64, intermediate_size=192, num_layers=3, num_heads=4, image_size_px=96, patch_size_px=12
        ),
        max_caption_tokens=64,
        system_prompt="",
    ),
    world="shapes",
    image_size_px=96,
    settings=GenerationSettings(num_steps=18, cfg_scale=3.0, temperature=10.0, batch_size=64),
    recipe="show-o-tiny",
    data="shapes",
    licence="Apache-2.0",
    notes="Pretrained on the embedded world; docs/show-o-tiny.md tells what the command does not do again.",
)
