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
    """Continue the backbone's own training on captions.

    Attributes:
        all_hidden_share: Share of batches whose every cell is hidden, so that the text alone tells of the image;
            above 0 in pretraining only.
        num_untold: Hidden cells of each image that count beside those its caption tells of, drawn anew each time;
            None for all. Only for data that knows what its captions tell of, in pretraining.
    """

    version: ClassVar[int] = 1
    """Raised when the method's decisions change numbers."""

    all_hidden_share: float = 0.0
    num_untold: int | None = None

    @property
    def needs_embeddings(self) -> bool:
        """False: masks are random."""
        return False

    def supervise(self, seen: Embeddings, masking_ratio: Tensor | None, rng: Generator) -> Supervision:
        """Return the caption and a random mask at the native ratio; see `Method`.

        Raises:
            ValueError: If `num_untold` is set and the data does not say what captions tell of, or nothing is masked.
        """
        import torch

        if self.all_hidden_share > 0 and masking_ratio is not None:
            all_hidden = torch.rand((), generator=rng, device=rng.device) < self.all_hidden_share
            masking_ratio = masking_ratio.masked_fill(all_hidden.to(masking_ratio.device), 1.0)
        masked = native_mask(seen, masking_ratio, rng=rng)
        if self.num_untold is None:
            return Supervision(caption=True, masked=masked)
        if seen.told is None or masked is None:
            raise ValueError("num_untold needs a backbone that masks and data that says what its captions tell of.")
        from segros_train.masking import top_mask

        draws = torch.rand(masked.shape, generator=rng, device=rng.device).to(masked.device)
        chosen = top_mask(draws.masked_fill(seen.told | ~masked, -1.0), self.num_untold)
        return Supervision(caption=True, masked=masked, target=masked & (seen.told | chosen))


def native_mask(seen: Embeddings, masking_ratio: Tensor | None, *, rng: Generator) -> Tensor | None:
    """Return a random mask [B, M] at the native ratio [B]; None where the backbone masks nothing."""
    from segros_train.masking import random_mask

    if masking_ratio is None:
        return None
    num_cells = seen.latent_grid[0] * seen.latent_grid[1]
    return random_mask(masking_ratio, num_cells, rng=rng, device=seen.image.device)
