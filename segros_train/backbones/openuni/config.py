"""Sizes of an OpenUni model; the defaults are what both published sizes share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from segros_train.backbones.common.configs import from_plain

__all__ = [
    "AutoencoderConfig",
    "ConnectorConfig",
    "LanguageConfig",
    "OpenUniConfig",
    "SanaConfig",
    "VisionConfig",
]

Corruption = Literal["native", "loss_mask", "clean_context"]
HintAttention = Literal["bidirectional", "causal"]

_CHANNELS = (128, 256, 512, 512, 1024, 1024)


@dataclass(frozen=True)
class VisionConfig:
    """The vision tower of InternVL; one visual embedding covers 2 x 2 patches."""

    hidden_size: int = 1024
    intermediate_size: int = 4096
    num_layers: int = 24
    num_heads: int = 16
    image_size_px: int = 448
    patch_size_px: int = 14
    layer_norm_eps: float = 1e-6

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of visual embeddings."""
        side = self.image_size_px // self.patch_size_px // 2
        return side, side


@dataclass(frozen=True)
class LanguageConfig:
    """The Qwen2 language model; its output head is not tied to its embeddings."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    vocab_size: int = 151674
    max_positions: int = 32768
    rope_theta: float = 1e6
    rms_norm_eps: float = 1e-6


@dataclass(frozen=True)
class ConnectorConfig:
    """The bidirectional transformer between the queries' hidden states and the image generator."""

    intermediate_size: int
    num_heads: int
    num_layers: int = 6
    layer_norm_eps: float = 1e-6


@dataclass(frozen=True)
class SanaConfig:
    """The diffusion transformer that draws latents; its attention projections have no bias."""

    num_heads: int
    head_dim: int
    num_layers: int
    num_cross_heads: int
    cross_head_dim: int
    caption_channels: int = 2304
    mlp_ratio: float = 2.5
    norm_eps: float = 1e-6

    @property
    def width(self) -> int:
        """Channels."""
        return self.num_heads * self.head_dim


@dataclass(frozen=True)
class AutoencoderConfig:
    """The deep-compression autoencoder between pixels and latent cells.

    Attributes:
        latent_channels: Numbers per latent cell.
        channels: Channels of each level, from the pixels inwards; each level but the last halves the resolution.
        encoder_layers: Blocks of each level of the encoder.
        decoder_layers: Blocks of each level of the decoder.
        num_residual_levels: Levels of convolutions; those further in have linear attention.
        attention_head_dim: Channels of an attention head.
        scale: Factor from the autoencoder's latents to the generator's.
    """

    latent_channels: int = 32
    channels: tuple[int, ...] = _CHANNELS
    encoder_layers: tuple[int, ...] = (2, 2, 2, 3, 3, 3)
    decoder_layers: tuple[int, ...] = (3, 3, 3, 3, 3, 3)
    num_residual_levels: int = 3
    attention_head_dim: int = 32
    scale: float = 0.41407

    @property
    def stride_px(self) -> int:
        """Side of a latent cell in pixels."""
        return 2 ** (len(self.channels) - 1)


@dataclass(frozen=True)
class OpenUniConfig:
    """An OpenUni model.

    Attributes:
        llm: The language model, frozen.
        connector: The transformer behind the language model.
        sana: The image generator.
        vision: The vision tower, frozen.
        autoencoder: The autoencoder, frozen.
        num_queries: Learned queries, whose hidden states condition the image.
        flow_shift: Shift of the noise levels of sampling; training takes 1.0.
        max_text_tokens: Ids of a generation prompt, template included.
        max_tokens: Ids of a prompt with an image, template and image included.
        max_dialogue_tokens: Ids of a dialogue, image tokens not counted; the rest is cut off on the right.
        truncation: What a long caption loses: its own end, or, as upstream has it, the end of the template.
        max_tiles: Most tiles of an image to be understood; 1 reads the image as a whole.
        corruption: What a supervision's masked cells mean to a generator that noises every cell alike:
            `"loss_mask"` takes the loss on them alone, `"native"` on every cell, `"clean_context"` leaves the
            others without noise as well.
        hint_attention: Mask among the hints where the attention is the paper's.
        instructions_file: UTF-8 text file with one request per line, for samples without a caption; None takes
            the package's own.
    """

    version: ClassVar[int] = 1
    """Raised when the family's losses, sampling or answers, or the training loop, change numbers."""

    llm: LanguageConfig
    connector: ConnectorConfig
    sana: SanaConfig
    vision: VisionConfig = field(default_factory=VisionConfig)
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    num_queries: int = 256
    flow_shift: float = 3.0
    max_text_tokens: int = 128
    max_tokens: int = 2048
    max_dialogue_tokens: int = 1472
    truncation: Literal["caption", "upstream"] = "caption"
    max_tiles: int = 12
    corruption: Corruption = "loss_mask"
    hint_attention: HintAttention = "bidirectional"
    instructions_file: str | None = None

    def __post_init__(self) -> None:
        for name, known in (
            ("truncation", ("caption", "upstream")),
            ("corruption", ("native", "loss_mask", "clean_context")),
            ("hint_attention", ("bidirectional", "causal")),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, found {getattr(self, name)!r}.")
        if self.max_tiles < 1:
            raise ValueError(f"max_tiles must be at least 1, found {self.max_tiles}.")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> OpenUniConfig:
        """Build a configuration from the plain values of a `config.json`.

        Raises:
            ValueError: If a field is unknown or missing.
        """
        return from_plain(cls, dict(values))
