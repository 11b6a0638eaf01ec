"""Supervised fine-tuning: the caption conditions, random cells are hidden, as the backbone was pretrained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from segros_train.types import Supervision

if TYPE_CHECKING:
    from torch import Tensor

    from segros_train.draws import Draws
    from segros_train.types import Embeddings

__all__ = ["SFT", "native_mask"]


@dataclass(frozen=True)
class SFT:
    """Continue the backbone's own training on captions."""

    version: ClassVar[int] = 2
    """Raised when the method's decisions change numbers."""

    @property
    def needs_embeddings(self) -> bool:
        """False: masks are random."""
        return False

    def supervise(self, seen: Embeddings, masking_ratio: Tensor | None, draws: Draws) -> Supervision:
        """Return the caption and a random mask at the native ratio; see `Method`."""
        return Supervision(caption=True, masked=native_mask(seen, masking_ratio, draws=draws))


def native_mask(seen: Embeddings, masking_ratio: Tensor | None, *, draws: Draws) -> Tensor | None:
    """Return a random mask [B, M] at the native ratio [B]; None where the backbone masks nothing."""
    from segros_train.masking import random_mask

    if masking_ratio is None:
        return None
    num_cells = seen.latent_grid[0] * seen.latent_grid[1]
    return random_mask(masking_ratio, draws.uniform("mask", num_cells).to(seen.image.device))
