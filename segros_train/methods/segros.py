"""Semantically-grounded supervision: one map decides the hints, the corrupted input and the loss.

Patches that the caption's discriminative words point at are shown as hints and rebuilt as targets;
what the caption does not speak of stays visible as context, and no loss is spent on it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from segros_train.methods.grounding import GroundingMap, GroundingOptions, check_share, grounding
from segros_train.types import Supervision

if TYPE_CHECKING:
    from torch import Tensor

    from segros_train.draws import Draws
    from segros_train.types import Embeddings

__all__ = ["HINT_RATIO", "SeGroS"]

HINT_RATIO = 0.3
"""Share of hints where neither a task nor a recipe says another. Source: SeGroS, Table 5 (the best row)."""


@dataclass(frozen=True, kw_only=True)
class SeGroS(GroundingOptions):
    """Show the caption with its hints, hide what it speaks of; every ablation of the paper is a field.

    Attributes:
        hint_ratio: Share of the visual embeddings shown as hints; 0 shows none. None: the recipe's, which a plan
            writes here, or the paper's 0.3.
        hints: Which end of the map the hints come from.
        visible: Which end of the map the visible context comes from; `"random"` masks as the backbone natively does.
        drop_loss: Whether the loss is taken on the top `hint_ratio` of the map alone instead of on all masked cells.
        unscheduled_masking_ratio: Share of cells that bear the loss where the backbone has no masking schedule.

    Source: SeGroS, sections 3.4 and 4.4, Tables 5, 6 and 8.
    """

    version: ClassVar[int] = 2
    """Raised when the method's decisions change numbers."""

    hint_ratio: float | None = None
    hints: Literal["top", "bottom"] = "top"
    visible: Literal["bottom", "top", "random"] = "bottom"
    drop_loss: bool = False
    unscheduled_masking_ratio: float = 0.87

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("hint_ratio", self.share_of_hints)
        check_share("unscheduled_masking_ratio", self.unscheduled_masking_ratio)
        if self.hints not in ("top", "bottom"):
            raise ValueError(f"hints must be 'top' or 'bottom', found {self.hints!r}.")
        if self.visible not in ("bottom", "top", "random"):
            raise ValueError(f"visible must be 'bottom', 'top' or 'random', found {self.visible!r}.")
        if self.drop_loss and (self.visible != "bottom" or self.share_of_hints == 0):
            raise ValueError(
                "drop_loss takes the loss on the top hint_ratio of the map: it needs visible='bottom', so that "
                f"the top is masked, and hint_ratio above 0; found {self.visible!r} and {self.share_of_hints}."
            )

    @property
    def share_of_hints(self) -> float:
        """`hint_ratio`, or the paper's where it is not set."""
        return HINT_RATIO if self.hint_ratio is None else self.hint_ratio

    @property
    def needs_embeddings(self) -> bool:
        """True: the map is made of them."""
        return True

    def supervise(self, seen: Embeddings, masking_ratio: Tensor | None, draws: Draws) -> Supervision:
        """Return the caption, the hints and the grounded mask; see `Method`."""
        return self.allocate(grounding(seen, self, draws=draws), masking_ratio, draws)

    def allocate(self, ranking: GroundingMap, masking_ratio: Tensor | None, draws: Draws) -> Supervision:
        """Return the supervision that a grounding map gives rise to.

        Args:
            ranking: Map of the batch.
            masking_ratio: [B] share of hidden cells; None where the backbone has no schedule.
            draws: Source of the mask where `visible` is `"random"`; otherwise nothing is drawn.
        """
        import torch

        if masking_ratio is None:
            size, device = len(ranking.cells), ranking.cells.device
            masking_ratio = torch.full((size,), self.unscheduled_masking_ratio, device=device)
        masked = self._masked(ranking.cells, masking_ratio, draws)
        target = masked & self._loss_bearing(ranking.cells) if self.drop_loss else None
        return Supervision(caption=True, hints=self._hints(ranking.perturbed), masked=masked, target=target)

    def _hints(self, scores: Tensor) -> Tensor | None:
        from segros_train import masking

        count = masking.floor_count(self.share_of_hints, scores.shape[-1])
        if count == 0:
            return None
        return masking.top_indices(scores, count) if self.hints == "top" else masking.bottom_indices(scores, count)

    def _masked(self, scores: Tensor, masking_ratio: Tensor, draws: Draws) -> Tensor:
        from segros_train import masking

        num_cells = scores.shape[-1]
        if self.visible == "random":
            return masking.random_mask(masking_ratio, draws.uniform("mask", num_cells).to(scores.device))
        counts = masking.num_masked(masking_ratio.to(scores.device), num_cells)
        return masking.top_mask(scores, counts) if self.visible == "bottom" else masking.bottom_mask(scores, counts)

    def _loss_bearing(self, scores: Tensor) -> Tensor:
        from segros_train import masking

        return masking.top_mask(scores, max(1, masking.floor_count(self.share_of_hints, scores.shape[-1])))
