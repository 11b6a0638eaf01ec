"""The modules of Harmon under the key names of its checkpoints, and the paths through them.

Shapes: V visible cells, b buffers, w the encoder's width, D the language model's.

Source: wusize/Harmon src/models/harmon.py @ 4eb60876
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from transformers import Qwen2Config, Qwen2ForCausalLM

from segros_train.backbones.common.recompute import residual_stream
from segros_train.backbones.harmon.config import HarmonConfig, LanguageConfig
from segros_train.backbones.harmon.mar import Mar
from segros_train.backbones.harmon.sequence import attention_mask, join, position_ids
from segros_train.backbones.harmon.vae import AutoencoderKL

if TYPE_CHECKING:
    from segros_train.types import Checkpointing

__all__ = ["HarmonModel", "initialise", "scale_gradient"]

PIXELS_AT_ONCE = 8 * 512 * 512
"""The autoencoder's first level holds about four arrays of 128 float32 channels a pixel: 4 GiB."""


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.factor, None


def scale_gradient(x: Tensor, factor: float) -> Tensor:
    """Return `x` itself, with its gradient multiplied by `factor`."""
    return _ScaleGradient.apply(x, factor)


def _language_model(config: LanguageConfig) -> Qwen2ForCausalLM:
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_kv_heads,
            max_position_embeddings=config.max_positions,
            rms_norm_eps=config.rms_norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            tie_word_embeddings=True,
            use_sliding_window=False,
        )
    )
    model.set_attn_implementation("sdpa")
    return model


class HarmonModel(nn.Module):
    """Autoencoder, language model, masked encoder and decoder, and the projections between them."""

    def __init__(self, config: HarmonConfig) -> None:
        super().__init__()
        self.config = config
        self.vae = AutoencoderKL(config.vae).requires_grad_(False)
        self.llm = _language_model(config.llm)
        self.mar = Mar(config.mar, channels=config.vae.embed_dim)
        wide, inner, width = config.mar.encoder_width, config.llm.hidden_size, config.llm.hidden_size
        self.proj_in = nn.Sequential(nn.Linear(wide, inner), nn.SiLU(), nn.Linear(inner, width))
        self.proj_out = nn.Sequential(nn.Linear(width, inner), nn.SiLU(), nn.Linear(inner, wide))

    def set_checkpointing(self, checkpointing: Checkpointing) -> None:
        """Choose what the backward pass computes again.

        Args:
            checkpointing: `"blocks"` are those of the language model, in train mode alone, and of the masked encoder
                and decoder; `"all"` adds the diffusion head, by rows.
        """
        self.mar.recompute = checkpointing != "none"
        self.mar.diffloss.recompute = checkpointing == "all"
        # Newer versions of transformers warn about the older names.
        if checkpointing == "none":
            name = "activation_checkpointing_disable"
            getattr(self.llm, name, self.llm.gradient_checkpointing_disable)()
        else:
            name = "activation_checkpointing_enable"
            getattr(self.llm, name, self.llm.gradient_checkpointing_enable)({"use_reentrant": False})
            # It also lets embeddings require a gradient, frozen or not, and does not take that back when disabled.
            with suppress(AttributeError):
                self.llm.disable_input_require_grads()

    def train(self, mode: bool = True) -> HarmonModel:
        """Set the mode of the trainable parts; the autoencoder stays in eval mode."""
        super().train(mode)
        self.vae.eval()
        return self

    @torch.no_grad()
    def encode_images(self, images: Tensor) -> Tensor:
        """Return latents [B, h, w, C] in the model's scale of images [B, 3, height, width] in [-1, 1]."""
        # Convolutions over few channels are a third faster when a pixel's channels lie together.
        images = images.contiguous(memory_format=torch.channels_last)
        at_once = max(1, PIXELS_AT_ONCE // (images.shape[2] * images.shape[3]))
        latents = torch.cat([self.vae.encode(part) for part in images.split(at_once)])
        return latents.float() * self.config.vae_scale

    @torch.no_grad()
    def decode_latents(self, latents: Tensor) -> Tensor:
        """Return images [B, 3, height, width], about [-1, 1], of latents [B, h, w, C] in the model's scale."""
        return self.vae.decode(latents / self.config.vae_scale)

    def to_language(self, encoded: Tensor) -> Tensor:
        """Return [B, V + b, D], buffers last, of encoder outputs [B, b + V, w], buffers first."""
        buffers = self.config.mar.buffer_size
        return self.proj_in(torch.cat([encoded[:, buffers:], encoded[:, :buffers]], dim=1))

    def from_language(self, encoded: Tensor, hidden: Tensor) -> Tensor:
        """Return what the decoder reads, [B, b + V, w], buffers first.

        Args:
            encoded: [B, b + V, w] encoder outputs, buffers first.
            hidden: [B, V + b, D] last states of the language model, buffers last.
        """
        change = self.proj_out(hidden)
        split = change.shape[1] - self.config.mar.buffer_size
        return encoded + torch.cat([change[:, split:], change[:, :split]], dim=1)

    def whole_image(self, latents: Tensor) -> Tensor:
        """Encode all cells for the language model: [B, N + b, D] of latents [B, h, w, C], buffers last.

        Gradient through the result is scaled by `grad_scale`.
        """
        positions = self.mar.positions((latents.shape[1], latents.shape[2]))
        encoded = self.mar.encode(latents.flatten(1, 2), None, positions)
        return scale_gradient(self.to_language(encoded), self.config.grad_scale)

    def conditions(
        self,
        text: Tensor,
        text_valid: Tensor,
        latents: Tensor,
        visible: Tensor,
        *,
        attention: Literal["paper", "native"] = "native",
        hints: Tensor | None = None,
        slot: int = 0,
    ) -> Tensor:
        """Return the condition of every cell, [B, N, decoder width].

        Args:
            text: [B, L, D] embedded prompt, padded on the right.
            text_valid: [B, L] bool.
            latents: [B, h, w, C]; hidden cells are not read.
            visible: [B, V] long, ascending indices of the visible cells.
            attention: Mask of the language model.
            hints: [B, H, D], or None.
            slot: Number of text tokens in front of the hints.
        """
        positions = self.mar.positions((latents.shape[1], latents.shape[2]))
        encoded = self.mar.encode(latents.flatten(1, 2), visible, positions)
        sequence, layout = join(text, text_valid, self.to_language(encoded), hints=hints, slot=slot)
        hidden = self.llm.model(
            inputs_embeds=residual_stream(sequence),
            attention_mask=attention_mask(layout, attention),
            position_ids=position_ids(layout.valid),
            use_cache=False,
        ).last_hidden_state
        return self.mar.decode(self.from_language(encoded, hidden[:, layout.image :]), visible, positions)


def initialise(model: HarmonModel, rng: torch.Generator) -> None:
    """Draw fresh weights for every part but the autoencoder, in place.

    Learned tokens and positions are normal with deviation 0.02, linear layers Xavier uniform. The language model's
    keep the scale of their input, as its hidden state must not drown in the encoder's on the way to the decoder:
    a narrow model drawn with deviation 0.02 had not begun to read after 2,500 updates. The modulation and the last
    layer of the diffusion head start at zero, so that it begins as the identity.
    """
    for module in (model.mar, model.proj_in, model.proj_out):
        for part in module.modules():
            if isinstance(part, nn.Linear):
                nn.init.xavier_uniform_(part.weight, generator=rng)
                nn.init.zeros_(part.bias)
    learned = [parameter for name, parameter in model.mar.named_parameters() if "." not in name]
    nn.init.normal_(model.llm.model.embed_tokens.weight, std=0.1, generator=rng)
    times = [part.weight for part in model.mar.diffloss.net.time_embed.mlp if isinstance(part, nn.Linear)]
    for parameter in (*learned, model.mar.class_emb.weight, *times):
        nn.init.normal_(parameter, std=0.02, generator=rng)
    for name, parameter in model.llm.model.layers.named_parameters():
        if parameter.dim() == 2:
            nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5, generator=rng)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)
    with torch.no_grad():
        model.proj_out[2].weight.mul_(3.0)
    net = model.mar.diffloss.net
    modulations = [block.get_submodule("adaLN_modulation.1") for block in (*net.res_blocks, net.final_layer)]
    for layer in (*modulations, net.final_layer.linear):
        for parameter in layer.parameters():
            nn.init.zeros_(parameter)
