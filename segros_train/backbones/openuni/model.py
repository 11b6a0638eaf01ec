"""The modules of OpenUni and the paths through them.

A frozen multimodal language model reads a prompt and then Q learned queries; their last hidden states pass the
connector and a projection and become what the image generator attends to. Latents never enter the language model.

Shapes: S tokens of a prompt, Q queries, D the language model's width, C channels of a latent cell.

Source: wusize/OpenUni src/models/openuni/internvl3_sana_hf.py @ d1703fc
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderDC, SanaTransformer2DModel
from torch import Tensor, nn
from transformers import DynamicCache, InternVLConfig, InternVLForConditionalGeneration

from segros_train.backbones.common.modes import evaluating, inference
from segros_train.backbones.common.recompute import residual_stream, run_blocks
from segros_train.backbones.openuni.config import AutoencoderConfig, ConnectorConfig, OpenUniConfig, SanaConfig
from segros_train.backbones.openuni.prefix import Prefix

if TYPE_CHECKING:
    from segros_train.types import Checkpointing

__all__ = ["OpenUniModel", "evaluating", "inference", "position_ids", "prefix_mask"]

IMAGES_AT_ONCE = 8
"""Images that the autoencoder encodes at once: a level of its encoder takes 128 MiB an image of 512 px in float32."""
IMAGE_MEAN, IMAGE_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class _Attention(nn.Module):
    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            part(x).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
            for part in (self.q_proj, self.k_proj, self.v_proj)
        )
        return self.out_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class _Mlp(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, inner)
        self.fc2 = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class _ConnectorLayer(nn.Module):
    def __init__(self, config: ConnectorConfig, width: int) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.self_attn = _Attention(width, config.num_heads)
        self.layer_norm2 = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.mlp = _Mlp(width, config.intermediate_size)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class _Connector(nn.Module):
    """Mix the queries' hidden states in both directions; neither positions nor a last norm."""

    def __init__(self, config: ConnectorConfig, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_ConnectorLayer(config, width) for _ in range(config.num_layers))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
            if isinstance(module, _Mlp):
                nn.init.normal_(module.fc1.bias, std=1e-6)
                nn.init.normal_(module.fc2.bias, std=1e-6)

    def forward(self, x: Tensor, *, recompute: bool = False) -> Tensor:
        return run_blocks(self.layers, x, recompute=recompute)


def _language_and_vision(config: OpenUniConfig) -> InternVLForConditionalGeneration:
    """Build the multimodal language model; what its class would assume otherwise is said in full."""
    llm, vision = config.llm, config.vision
    model = InternVLForConditionalGeneration(
        InternVLConfig(
            vision_config={
                "hidden_size": vision.hidden_size,
                "intermediate_size": vision.intermediate_size,
                "num_hidden_layers": vision.num_layers,
                "num_attention_heads": vision.num_heads,
                "image_size": vision.image_size_px,
                "patch_size": vision.patch_size_px,
                "layer_norm_eps": vision.layer_norm_eps,
                "attention_bias": True,
                "use_mean_pooling": True,
            },
            text_config={
                "model_type": "qwen2",
                "hidden_size": llm.hidden_size,
                "intermediate_size": llm.intermediate_size,
                "num_hidden_layers": llm.num_layers,
                "num_attention_heads": llm.num_heads,
                "num_key_value_heads": llm.num_kv_heads,
                "vocab_size": llm.vocab_size,
                "max_position_embeddings": llm.max_positions,
                "rms_norm_eps": llm.rms_norm_eps,
                "rope_parameters": {"rope_type": "default", "rope_theta": llm.rope_theta},
                "tie_word_embeddings": False,
                "use_sliding_window": False,
            },
            downsample_ratio=0.5,
            image_seq_length=vision.grid[0] * vision.grid[1],
            tie_word_embeddings=False,
        )
    )
    model.set_attn_implementation("sdpa")
    return model


def _sana(config: SanaConfig, channels: int) -> SanaTransformer2DModel:
    model = SanaTransformer2DModel(
        in_channels=channels,
        out_channels=channels,
        num_attention_heads=config.num_heads,
        attention_head_dim=config.head_dim,
        num_layers=config.num_layers,
        num_cross_attention_heads=config.num_cross_heads,
        cross_attention_head_dim=config.cross_head_dim,
        cross_attention_dim=config.width,
        caption_channels=config.caption_channels,
        mlp_ratio=config.mlp_ratio,
        norm_eps=config.norm_eps,
        attention_bias=False,
        interpolation_scale=None,
        sample_size=1,
    )
    for block in model.transformer_blocks:
        # Gates are float32 parameters, which would promote what they are multiplied on.
        block.register_forward_hook(lambda block, inputs, states: residual_stream(states))
    return model


def _autoencoder(config: AutoencoderConfig) -> AutoencoderDC:
    num_levels = len(config.channels)
    attending = num_levels - config.num_residual_levels
    blocks = ("ResBlock",) * config.num_residual_levels + ("EfficientViTBlock",) * attending
    scales: tuple[tuple[int, ...], ...] = ((),) * config.num_residual_levels + ((5,),) * attending
    return AutoencoderDC(
        latent_channels=config.latent_channels,
        attention_head_dim=config.attention_head_dim,
        encoder_block_types=blocks,
        decoder_block_types=blocks,
        encoder_block_out_channels=config.channels,
        decoder_block_out_channels=config.channels,
        encoder_layers_per_block=config.encoder_layers,
        decoder_layers_per_block=config.decoder_layers,
        encoder_qkv_multiscales=scales,
        decoder_qkv_multiscales=scales,
        upsample_block_type="interpolate",
        downsample_block_type="conv",
        scaling_factor=config.scale,
    )


def position_ids(valid: Tensor) -> Tensor:
    """Return positions [B, S] that padding does not advance, for `valid` [B, S] bool."""
    return (valid.long().cumsum(dim=1) - 1).clamp(min=0)


def prefix_mask(valid: Tensor, hints: Tensor, dtype: torch.dtype) -> Tensor:
    """Return who may attend to whom in a prompt whose hints see one another, [B, 1, S, S], to be added to scores.

    Additive because a bool mask is read differently by different attention kernels; finite because a row of
    padding would otherwise be NaN.

    Args:
        valid: [B, S] bool, False on padding.
        hints: [B, S] bool, True where hints stand.
        dtype: Type of the scores.

    Source: SeGroS paper, section 8.2
    """
    size = valid.shape[1]
    causal = torch.ones(size, size, dtype=torch.bool, device=valid.device).tril()
    allowed = causal | (hints.unsqueeze(2) & hints.unsqueeze(1))
    mask = (allowed & valid.unsqueeze(1)).unsqueeze(1)
    return torch.zeros(mask.shape, dtype=dtype, device=valid.device).masked_fill(~mask, torch.finfo(dtype).min)


class OpenUniModel(nn.Module):
    """Multimodal language model, queries, connector, projection, image generator and autoencoder."""

    def __init__(self, config: OpenUniConfig) -> None:
        super().__init__()
        self.config = config
        width = config.llm.hidden_size
        self.lmm = _language_and_vision(config).requires_grad_(False).eval()
        self.vae = _autoencoder(config.autoencoder).requires_grad_(False).eval()
        self.transformer = _sana(config.sana, config.autoencoder.latent_channels)
        self.connector = _Connector(config.connector, width)
        self.projector = nn.Linear(width, config.sana.caption_channels)
        self.meta_queries = nn.Parameter(torch.randn(config.num_queries, width) * width**-0.5)
        self.checkpointing: Checkpointing = "none"

    def set_checkpointing(self, checkpointing: Checkpointing) -> None:
        """Choose what the backward pass computes again.

        `"blocks"` are those of the image generator and, behind the queries, of the language model; `"all"` takes the
        connector's too.
        """
        self.checkpointing = checkpointing
        if checkpointing == "none":
            self.transformer.disable_gradient_checkpointing()
        else:
            self.transformer.enable_gradient_checkpointing()

    def train(self, mode: bool = True) -> OpenUniModel:
        """Set the mode of the trainable parts; what is frozen stays in eval mode."""
        super().train(mode)
        self.vae.eval()
        self.lmm.eval()
        return self

    @property
    def language(self) -> Any:
        """The language model without its head."""
        return self.lmm.model.language_model

    def embed_ids(self, ids: Tensor) -> Tensor:
        """Return rows [..., D] of the embedding table."""
        return self.language.embed_tokens(ids)

    def vision_input(self, images: Tensor) -> Tensor:
        """Return what the vision tower reads of images [B, 3, height, width] in [-1, 1]: normalised, then resized."""
        mean, std = (torch.tensor(values, device=images.device).view(3, 1, 1) for values in (IMAGE_MEAN, IMAGE_STD))
        size = (self.config.vision.image_size_px,) * 2
        return F.interpolate(((images + 1) / 2 - mean) / std, size, mode="bilinear", align_corners=False)

    def see(self, images: Tensor) -> Tensor:
        """Return visual embeddings [B, N, D] of images [B, 3, height, width] in [-1, 1]."""
        return self.lmm.model.get_image_features(self.vision_input(images)).pooler_output

    @torch.no_grad()
    def read(self, prompt: Tensor, valid: Tensor, *, hints: Tensor | None = None) -> Prefix:
        """Read prompts without gradient: the queries' gradient needs their keys and values only.

        Args:
            prompt: [B, S, D] embeddings.
            valid: [B, S] bool, False on padding.
            hints: [B, S] bool, True on hints that see one another; None for causal attention throughout.
        """
        cache = DynamicCache(config=self.language.config)
        self.language(
            inputs_embeds=residual_stream(prompt),
            attention_mask=valid.long() if hints is None else prefix_mask(valid, hints, prompt.dtype),
            position_ids=position_ids(valid),
            past_key_values=cache,
            use_cache=True,
        )
        return Prefix(cache, valid)

    def query(self, prefix: Prefix) -> Tensor:
        """Return the last hidden states [B, Q, D] of the queries behind prompts.

        The stock layers are run one by one: a layer that is run again for the gradient must find the prefix as it was,
        where the stock model would append to it or leave it out.
        """
        size, start = prefix.valid.shape
        queries = self.meta_queries.to(self.language.embed_tokens.weight.dtype).expand(size, -1, -1)
        num_queries = queries.shape[1]
        causal = torch.ones(num_queries, num_queries, dtype=torch.bool, device=queries.device).tril()
        before = prefix.valid.unsqueeze(1).expand(-1, num_queries, -1)
        positions = position_ids(F.pad(prefix.valid, (0, num_queries), value=True))[:, start:]
        context = {
            "attention_mask": torch.cat([before, causal.expand(size, -1, -1)], dim=2).unsqueeze(1),
            "position_ids": positions,
            "past_key_values": prefix,
            "use_cache": True,
            "position_embeddings": self.language.rotary_emb(queries, position_ids=positions),
        }
        layers = [partial(layer, **context) for layer in self.language.layers]
        recompute = self.checkpointing != "none"
        return self.language.norm(run_blocks(layers, residual_stream(queries), recompute=recompute))

    def condition(self, hidden: Tensor) -> Tensor:
        """Return what the generator attends to, [B, Q, caption channels], of the queries' states [B, Q, D]."""
        stream = residual_stream(hidden.to(self.projector.weight.dtype))
        return self.projector(self.connector(stream, recompute=self.checkpointing == "all"))

    def velocity(self, noisy: Tensor, conditions: Tensor, timesteps: Tensor) -> Tensor:
        """Return the generator's estimate of noise minus latents, [B, C, h, w].

        Args:
            noisy: [B, C, h, w].
            conditions: [B, Q, caption channels].
            timesteps: [B] float, in [0, 1000].
        """
        return self.transformer(noisy, encoder_hidden_states=conditions, timestep=timesteps, return_dict=False)[0]

    @torch.no_grad()
    def encode_images(self, images: Tensor) -> Tensor:
        """Return latents [B, C, h, w] in the generator's scale of images [B, 3, height, width] in [-1, 1]."""
        parts = images.to(next(self.vae.parameters()).dtype).split(IMAGES_AT_ONCE)
        latents = torch.cat([self.vae.encode(part, return_dict=False)[0] for part in parts])
        return latents.float() * self.config.autoencoder.scale

    @torch.no_grad()
    def decode_latents(self, latents: Tensor) -> Tensor:
        """Return images [B, 3, height, width], about [-1, 1], of latents [B, C, h, w] in the generator's scale."""
        latents = (latents / self.config.autoencoder.scale).to(next(self.vae.parameters()).dtype)
        return self.vae.decode(latents, return_dict=False)[0]
