"""What the drawing parts of all families share: which scenes a batch holds, and which cells bear the loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from pretraining.fitting import PartRecipe, Run, fit
from pretraining.scenes import NUM_CELLS, SCENES_SEED, EncodedScenes, ordinary_scene
from segros_train.data.shapes.captions import question

if TYPE_CHECKING:
    from segros_train.data.shapes.world import Tag
    from segros_train.types import Turn

__all__ = ["DrawingRecipe", "asked", "fit_drawing", "visible_and_hidden"]

Points = tuple[tuple[float, float], ...]
"""A value over a part, on straight lines between (share of the updates, value)."""


@dataclass(frozen=True, kw_only=True)
class DrawingRecipe(PartRecipe):
    """How drawing, and answering beside it, is learned in one part.

    Attributes:
        name: Of the part and its files.
        tags: What the scenes are about, alike; as the mixture has it when empty.
        full_share: Share of scenes whose captions tell of half of the cells.
        object_weight: Weight of a cell that shows an object, against 1 of one that does not.
        num_background_cells: Number of randomly chosen background cells that also bear the loss; None for all.
        all_hidden_share: Share of updates whose every cell is hidden.
        text_dropout: Share of captions left out.
        kind_weight: Weight of the loss of a classifier that names what hidden cells show; see `harmon`.
        num_questions: Questions per update.
        i2t_weight: Weight of the loss of their answers.
        kept: Share of the running average of the weights that an update keeps; 0 takes the weights themselves.
    """

    name: str
    tags: tuple[Tag, ...] = ()
    full_share: Points = ((0.0, 0.0),)
    object_weight: Points = ((0.0, 1.0),)
    num_background_cells: int | None = None
    all_hidden_share: float = 0.0
    text_dropout: float = 0.1
    kind_weight: Points = ((0.0, 0.0),)
    num_questions: int = 0
    i2t_weight: float = 1.0
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

    def all_hidden(self, rng: torch.Generator) -> bool:
        """Draw whether every cell of a step is hidden."""
        return float(torch.rand((), generator=rng)) < self.all_hidden_share

    def dropped(self, size: int, rng: torch.Generator) -> list[bool]:
        """Draw which captions are left out."""
        return (torch.rand(size, generator=rng) < self.text_dropout).tolist()


def visible_and_hidden(size: int, num_hidden: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw the cells that are shown, ascending, and those that are not: [B, visible] and [B, hidden]."""
    order = torch.rand(size, NUM_CELLS, generator=rng).argsort(dim=1)
    return order[:, num_hidden:].sort(dim=1).values, order[:, :num_hidden]


def asked(count: int, num_scenes: int, rng: torch.Generator) -> tuple[list[int], list[Turn]]:
    """Draw ordinary scenes, by index, and a question with its answer about each."""
    indices = torch.randint(num_scenes, (count,), generator=rng).tolist()
    rngs = [np.random.default_rng((SCENES_SEED, index, 1)) for index in indices]
    return indices, [question(ordinary_scene(index), rng) for index, rng in zip(indices, rngs, strict=True)]


def fit_drawing(
    modules: nn.Module, loss: Callable[[int, torch.Generator], Tensor], recipe: DrawingRecipe, run: Run
) -> None:
    """Train modules in place; the running average of their weights is what is left."""
    modules.train()
    average = AveragedModel(modules, multi_avg_fn=get_ema_multi_avg_fn(recipe.kept)).requires_grad_(False)
    both = nn.ModuleList([modules, average])
    fit(recipe.name, both, loss, recipe, run, after=lambda: average.update_parameters(modules))
    modules.load_state_dict(average.module.state_dict())
    modules.eval()
