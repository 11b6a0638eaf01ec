"""Random hints: a control for methods that choose them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from segros_train.methods.sft import native_mask
from segros_train.types import Supervision

if TYPE_CHECKING:
    from torch import Tensor

    from segros_train.draws import Draws
    from segros_train.types import Embeddings


@dataclass(frozen=True)
class RandomHints:
    """Show random patches beside the caption, and hide random cells as SFT does.

    Attributes:
        hint_ratio: Share of the visual embeddings shown.
    """

    version: ClassVar[int] = 1
    """Raised when the method's decisions change numbers."""

    hint_ratio: float = 0.3

    @property
    def needs_embeddings(self) -> bool:
        """False: the number of patches is enough."""
        return False

    def supervise(self, seen: Embeddings, masking_ratio: Tensor | None, draws: Draws) -> Supervision:
        """Return caption, random hints and a random mask at the native ratio; see `Method`."""
        from segros_train import masking

        num_visual = seen.image.shape[1]
        ranking = draws.uniform("random hints", num_visual).to(seen.image.device)
        hints = masking.top_indices(ranking, masking.floor_count(self.hint_ratio, num_visual))
        return Supervision(caption=True, hints=hints, masked=native_mask(seen, masking_ratio, draws=draws))
