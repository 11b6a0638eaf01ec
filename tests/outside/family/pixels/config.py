"""Sizes of a Pixels. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from segros_train.backbones.common.configs import from_plain


@dataclass(frozen=True)
class PixelsConfig:
    """What a Pixels is made of.

    Attributes:
        width: D, width of the embeddings.
        cells: Latent cells per side; a cell is the mean colour of a square of the image.
        vocab_size: Tokens of the tokenizer.
    """

    version: ClassVar[int] = 1
    """Raised when the family's numbers move."""

    width: int = 16
    cells: int = 4
    vocab_size: int = 320

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PixelsConfig:
        """Build a configuration from the plain values of a `config.json`."""
        return from_plain(cls, values)
