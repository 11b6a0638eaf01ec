"""Reconstruction alignment: the image is rebuilt from its own visual embeddings, without its caption."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from segros_train.methods.grounding import GroundingOptions, check_share, grounding
from segros_train.methods.sft import native_mask
from segros_train.types import Supervision

if TYPE_CHECKING:
    from torch import Tensor

    from segros_train.draws import Draws
    from segros_train.types import Embeddings

__all__ = ["Reca"]


@dataclass(frozen=True, kw_only=True)
class Reca(GroundingOptions):
    """Show visual hints in place of the caption and hide random cells.

    Attributes:
        hint_ratio: Share of the visual embeddings shown. Below 1 they are the top of the grounding map, the
            paper's "Reca + SeGroS hint filtering"; at 1 no map is computed.

    Source: SeGroS, section 9.2 and Table 9.
    """

    version: ClassVar[int] = 2
    """Raised when the method's decisions change numbers."""

    hint_ratio: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("hint_ratio", self.hint_ratio)
        if self.hint_ratio == 0:
            raise ValueError("hint_ratio must be above 0: without caption and hints nothing conditions the image.")

    @property
    def needs_embeddings(self) -> bool:
        """Whether the hints are chosen by a map."""
        return self.hint_ratio < 1

    def supervise(self, seen: Embeddings, masking_ratio: Tensor | None, draws: Draws) -> Supervision:
        """Return the hints and a random mask at the native ratio, without the caption; see `Method`."""
        hints = self._hints(seen, draws)
        return Supervision(caption=False, hints=hints, masked=native_mask(seen, masking_ratio, draws=draws))

    def _hints(self, seen: Embeddings, draws: Draws) -> Tensor:
        import torch

        from segros_train import masking

        size, num_visual = seen.image.shape[:2]
        if self.hint_ratio == 1:
            return torch.arange(num_visual, device=seen.image.device).expand(size, num_visual)
        ranking = grounding(seen, self, draws=draws).perturbed
        # A grid so small that the share holds no whole patch still needs one, its only condition.
        return masking.top_indices(ranking, max(1, masking.floor_count(self.hint_ratio, num_visual)))
