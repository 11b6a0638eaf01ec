"""Sizes of a Harmon model; the defaults are what both published sizes share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from segros_train.backbones.common.configs import from_plain

__all__ = ["DiffusionConfig", "HarmonConfig", "LanguageConfig", "MarConfig", "VaeConfig"]


@dataclass(frozen=True)
class VaeConfig:
    """The KL autoencoder between pixels and latent cells.

    Attributes:
        embed_dim: Channels of a latent cell.
        ch: Channels of the first level.
        ch_mult: Channels of each level, in multiples of `ch`; each level but the last halves the resolution.
        num_res_blocks: Residual blocks per level of the encoder; the decoder has one more.
        num_groups: Groups of every GroupNorm.
        encoder_attention_levels: Levels of the encoder with attention after each block.
        decoder_attention_levels: Levels of the decoder with attention after each block.
    """

    embed_dim: int = 16
    ch: int = 128
    ch_mult: tuple[int, ...] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2
    num_groups: int = 32
    encoder_attention_levels: tuple[int, ...] = (4,)
    decoder_attention_levels: tuple[int, ...] = ()

    @property
    def stride_px(self) -> int:
        """Side of a latent cell in pixels."""
        return 2 ** (len(self.ch_mult) - 1)


@dataclass(frozen=True)
class LanguageConfig:
    """The Qwen2 language model."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    vocab_size: int = 151936
    max_positions: int = 32768
    rope_theta: float = 1e6
    rms_norm_eps: float = 1e-6


@dataclass(frozen=True)
class DiffusionConfig:
    """The diffusion head that models one latent cell.

    Attributes:
        depth: Residual blocks.
        width: Channels.
        num_sampling_steps: Denoising steps of a draw, out of the 1000 of training.
        last_sampling_timestep: Timestep a draw starts from; upstream's is the last of training.
        batch_mul: Timesteps drawn per cell and training step.
        max_timestep_weight: Training draws a timestep in proportion to the inverse of the signal's share of the
            variance, up to this. 1 draws all alike, as upstream does; more favours the noisy ones, at which the
            condition, and not the noisy cell, tells what the cell shows.
    """

    depth: int
    width: int
    num_sampling_steps: int = 100
    last_sampling_timestep: int = 999
    batch_mul: int = 4
    max_timestep_weight: float = 1.0


@dataclass(frozen=True)
class MarConfig:
    """The masked autoregressive encoder and decoder.

    Attributes:
        encoder_width: Channels of the encoder.
        encoder_depth: Blocks of the encoder.
        encoder_heads: Attention heads of the encoder.
        decoder_width: Channels of the decoder.
        decoder_depth: Blocks of the decoder.
        decoder_heads: Attention heads of the decoder.
        diffusion: The diffusion head.
        base_grid: Rows and columns the learned positions are stored for; other grids interpolate them.
        buffer_size: Learned tokens that go along with the visible cells.
        mlp_ratio: Hidden width of an MLP in multiples of the width.
        mask_ratio_min: Smallest share of hidden cells in training.
        mask_ratio_deviation: Deviation from 1 of that share before it is cut.
        attention_dropout: Dropout of attention weights in training.
        projection_dropout: Dropout after projections and in MLPs in training.
        num_classes: Rows of the class table, which checkpoints hold and nothing reads.
    """

    encoder_width: int
    encoder_depth: int
    encoder_heads: int
    decoder_width: int
    decoder_depth: int
    decoder_heads: int
    diffusion: DiffusionConfig
    base_grid: tuple[int, int] = (16, 16)
    buffer_size: int = 64
    mlp_ratio: float = 4.0
    mask_ratio_min: float = 0.7
    mask_ratio_deviation: float = 0.25
    attention_dropout: float = 0.1
    projection_dropout: float = 0.1
    num_classes: int = 1000


@dataclass(frozen=True)
class HarmonConfig:
    """A Harmon model.

    Attributes:
        llm: The language model.
        mar: The masked encoder and decoder with the diffusion head.
        vae: The autoencoder.
        vae_scale: Factor from the autoencoder's latents to the model's.
        grad_scale: Factor of the gradient that flows into encodings of whole images (hints, questions).
        max_caption_tokens: Ids of a generation prompt, template included; the rest is cut off on the right.
        max_dialogue_tokens: Ids of a dialogue, image tokens not counted; the rest is cut off on the right.
        instructions_file: UTF-8 text file with one request per line, for samples without a caption; None takes
            the package's own.
    """

    version: ClassVar[int] = 1
    """Raised when the family's losses, sampling or answers, or the training loop, change numbers."""

    llm: LanguageConfig
    mar: MarConfig
    vae: VaeConfig = field(default_factory=VaeConfig)
    vae_scale: float = 0.2325
    grad_scale: float = 0.1
    max_caption_tokens: int = 128
    max_dialogue_tokens: int = 1472
    instructions_file: str | None = None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> HarmonConfig:
        """Build a configuration from the plain values of a `config.json`.

        The former field `gradient_checkpointing`, which changed nothing that weights compute, is passed over.

        Raises:
            ValueError: If a field is unknown or missing.
        """
        return from_plain(cls, {name: value for name, value in values.items() if name != "gradient_checkpointing"})
