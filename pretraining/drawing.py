"""What the drawing parts of all families share: which scenes a batch holds, and which cells bear the loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pretraining.fitting import Averaged, PartRecipe, Run, fit
from pretraining.scenes import NUM_CELLS, EncodedScenes

if TYPE_CHECKING:
    from segros_train.data.shapes.world import Tag

__all__ = ["DrawingRecipe", "fit_drawing", "visible_and_hidden"]

Points = tuple[tuple[float, float], ...]
"""A value over a part, on straight lines between (share of the updates, value)."""


@dataclass(frozen=True, kw_only=True)
class DrawingRecipe(PartRecipe):
    """How drawing is learned in one part.

    Attributes:
        name: Of the part and its files.
        tags: What the scenes are about, alike; as the mixture has it when empty.
        full_share: Share of scenes whose captions tell of half of the cells.
        object_weight: Weight of a cell that shows an object, against 1 of one that does not.
        num_background_cells: Number of randomly chosen background cells that also bear the loss; None for all.
        all_hidden_share: Share of updates whose every cell is hidden.
        text_dropout: Share of captions left out.
        kept: Share of the running average of the weights that an update keeps; 0 takes the weights themselves.
    """

    name: str
    tags: tuple[Tag, ...] = ()
    full_share: Points = ((0.0, 0.0),)
    object_weight: Points = ((0.0, 1.0),)
    num_background_cells: int | None = None
    all_hidden_share: float = 0.0
    text_dropout: float = 0.1
    kept: float = 0.0

    def batch(self, scenes: Sequence[EncodedScenes], step: int, rng: torch.Generator) -> EncodedScenes:
        """Draw the scenes of a step from the ordinary ones and those whose captions tell of half of the cells."""
        num_full = round(self.at(self.full_share, step) * self.batch_size)
        counts = (self.batch_size - num_full, num_full)
        return EncodedScenes.joined(
            [kind.picked(count, rng, self.tags) for kind, count in zip(scenes, counts, strict=True) if count]
        )

    def cell_weights(self, shown: Tensor, step: int, rng: torch.Generator) -> Tensor:
        """Return the weight of the loss of each cell, summing to 1, of the kinds [B, cells] that the cells show."""
        held = shown > 0
        weights = torch.where(held, self.at(self.object_weight, step), 1.0)
        if self.num_background_cells is not None:
            draws = torch.rand(shown.shape, generator=rng).to(shown.device).masked_fill(held, 2.0)
            place = draws.argsort(dim=1).argsort(dim=1)
            weights = weights * (held | (place < self.num_background_cells))
        return weights / weights.sum()

    def dropped(self, size: int, rng: torch.Generator) -> list[bool]:
        """Draw which captions are left out."""
        return (torch.rand(size, generator=rng) < self.text_dropout).tolist()


def visible_and_hidden(size: int, num_hidden: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw the cells that are shown, ascending, and those that are not: [B, visible] and [B, hidden]."""
    order = torch.rand(size, NUM_CELLS, generator=rng).argsort(dim=1)
    return order[:, num_hidden:].sort(dim=1).values, order[:, :num_hidden]


def fit_drawing(
    modules: nn.Module, loss: Callable[[int, torch.Generator], Tensor], recipe: DrawingRecipe, run: Run
) -> None:
    """Train modules in place; the running average of their weights is kept, where one is asked for."""
    modules.train()
    if recipe.kept:
        both = Averaged(modules, kept=recipe.kept)
        fit(recipe.name, both, loss, recipe, run, after=both.average)
        both.adopt()
    else:
        fit(recipe.name, modules, loss, recipe, run)
    modules.eval()
