"""Supervised fine-tuning: the caption conditions, random cells are hidden, as the backbone was pretrained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from segros_train.types import Supervision

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from segros_train.types import Embeddings

__all__ = ["SFT", "native_mask"]


@dataclass(frozen=True)
class SFT:
    """Continue the backbone's own training on captions."""

    version: ClassVar[int] = 1
    """Raised when the method's decisions change numbers."""

    retired: ClassVar = {"all_hidden_share": 0.0, "num_untold": None}
    """Fields of old, at the one value that results were published with: they stay in keys."""

    @property
    def needs_embeddings(self) -> bool:
        """False: masks are random."""
        return False

    def supervise(self, seen: Embeddings, masking_ratio: Tensor | None, rng: Generator) -> Supervision:
        """Return the caption and a random mask at the native ratio; see `Method`."""
        return Supervision(caption=True, masked=native_mask(seen, masking_ratio, rng=rng))


def native_mask(seen: Embeddings, masking_ratio: Tensor | None, *, rng: Generator) -> Tensor | None:
    """Return a random mask [B, M] at the native ratio [B]; None where the backbone masks nothing."""
    from segros_train.masking import random_mask

    if masking_ratio is None:
        return None
    num_cells = seen.latent_grid[0] * seen.latent_grid[1]
    return random_mask(masking_ratio, num_cells, rng=rng, device=seen.image.device)
