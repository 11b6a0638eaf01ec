"""Sizes of a Show-o model; the defaults are what the published checkpoints share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from segros_train.backbones.common.configs import from_plain

__all__ = ["NUM_SPECIAL_TOKENS", "SYSTEM_PROMPT", "ClipConfig", "LanguageConfig", "ShowoConfig", "VqConfig"]

NUM_SPECIAL_TOKENS = 10
SYSTEM_PROMPT = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
"""Source: showlab/Show-o training/prompting_utils.py @ 45a5a2de (28 tokens of Phi-1.5)."""


@dataclass(frozen=True)
class VqConfig:
    """The MAGVIT-v2 tokenizer between pixels and codes.

    Attributes:
        num_bits: Channels of a latent cell, one bit of its code each.
        ch: Channels of the first level.
        encoder_mult: Channels of each level of the encoder, in multiples of `ch`; each but the last halves the sides.
        encoder_blocks: Residual blocks of each level of the encoder.
        decoder_mult: Channels of each level of the decoder.
        decoder_blocks: Residual blocks of each level of the decoder.
        num_groups: Groups of every GroupNorm.
    """

    num_bits: int = 13
    ch: int = 128
    encoder_mult: tuple[int, ...] = (1, 2, 2, 4, 4)
    encoder_blocks: tuple[int, ...] = (4, 3, 4, 3, 4)
    decoder_mult: tuple[int, ...] = (1, 1, 2, 2, 4)
    decoder_blocks: tuple[int, ...] = (4, 4, 3, 4, 3)
    num_groups: int = 32

    @property
    def codebook_size(self) -> int:
        """Number of codes."""
        return 2**self.num_bits

    @property
    def stride_px(self) -> int:
        """Side of a latent cell in pixels."""
        return 2 ** (len(self.encoder_mult) - 1)


@dataclass(frozen=True)
class LanguageConfig:
    """The Phi language model; `text_vocab_size` counts the tokenizer's own ids."""

    hidden_size: int = 2048
    intermediate_size: int = 8192
    num_layers: int = 24
    num_heads: int = 32
    text_vocab_size: int = 50295
    max_positions: int = 2048
    rope_theta: float = 1e4
    rotary_share: float = 0.5
    layer_norm_eps: float = 1e-5


@dataclass(frozen=True)
class ClipConfig:
    """The vision tower; defaults are CLIP ViT-L/14 at 336 px."""

    hidden_size: int = 1024
    intermediate_size: int = 4096
    num_layers: int = 24
    num_heads: int = 16
    image_size_px: int = 336
    patch_size_px: int = 14

    @property
    def side(self) -> int:
        """Rows, and columns, of patches."""
        return self.image_size_px // self.patch_size_px


@dataclass(frozen=True)
class ShowoConfig:
    """A Show-o model.

    Attributes:
        llm: The language model.
        vq: The tokenizer of images.
        clip: The vision tower that reads images; None where codes are read instead (`w_clip_vit` False).
        max_caption_tokens: Ids of the text of a generation prompt, task token not counted (`max_seq_length`).
        max_dialogue_tokens: Ids of a dialogue, image and system prompt not counted; the rest is cut off.
        min_masking_ratio: Smallest share of hidden cells in training.
        system_prompt: Text in front of the image where a vision tower reads it.
        boundary_targets: Whether the tokens around the codes bear loss too, as upstream's t2i loss has it.
        drop_hints_with_text: Whether a sample whose caption is dropped loses its hints as well.
        code_hints: Without a vision tower, what hints are codes of: the image at half its size, or the image shrunk
            eightfold and enlarged again. Codes of the image itself would be copied.
        instructions_file: UTF-8 text file with one request per line, for samples without a caption; None takes
            the package's own.
    """

    version: ClassVar[int] = 1
    """Raised when the family's losses, sampling or answers, or the training loop, change numbers."""

    llm: LanguageConfig = field(default_factory=LanguageConfig)
    vq: VqConfig = field(default_factory=VqConfig)
    clip: ClipConfig | None = field(default_factory=ClipConfig)
    max_caption_tokens: int = 128
    max_dialogue_tokens: int = 381
    min_masking_ratio: float = 0.0
    system_prompt: str = SYSTEM_PROMPT
    boundary_targets: bool = False
    drop_hints_with_text: bool = True
    code_hints: Literal["half", "blur8"] = "half"
    instructions_file: str | None = None

    @property
    def image_offset(self) -> int:
        """Id of code 0."""
        return self.llm.text_vocab_size + NUM_SPECIAL_TOKENS

    @property
    def mask_id(self) -> int:
        """Id that stands at hidden cells, the last."""
        return self.image_offset + self.vq.codebook_size

    @property
    def vocab_size(self) -> int:
        """Number of ids: text, special tokens, codes, mask."""
        return self.mask_id + 1

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ShowoConfig:
        """Build a configuration from the plain values of a `config.json`.

        Raises:
            ValueError: If a field is unknown or missing.
        """
        return from_plain(cls, dict(values))
