"""The vision tower of a tiny Show-o, which stands in for CLIP: patches that know the object around them.

Its patches lie on a grid of their own, 8 x 8 of 12 px over the 6 x 6 cells of 16 px, so that maps are carried between
grids as with CLIP. Each patch learns shape and colour of the object in the cell around its centre, or that there is
none, from the last but one block, which is what the language model reads, and from the last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segros_train.backbones.showo.model import ShowoModel
from segros_train.data.shapes.world import CELL_PX, COLORS, GRID, OBJECT_NAMES, Scene, crowded_scene, sample_scene
from segros_train.pretraining.showo.fitting import Fit, fit
from segros_train.pretraining.tiny import pixels

__all__ = ["TowerRecipe", "patch_labels", "pretrain_tower"]


@dataclass(frozen=True)
class TowerRecipe:
    """How the vision tower is trained.

    Attributes:
        fit: Updates and rates.
        batch_size: Scenes per update, every second one crowded.
    """

    fit: Fit = field(default_factory=lambda: Fit(steps=600, learning_rate=2e-3, warmup_steps=40))
    batch_size: int = 32


def patch_labels(scenes: Sequence[Scene], *, side: int) -> tuple[Tensor, Tensor]:
    """Return shape and colour of the object around each patch, [scenes, side x side] each; the last class is none."""
    shapes = torch.full((len(scenes), GRID, GRID), len(OBJECT_NAMES))
    colors = torch.full((len(scenes), GRID, GRID), len(COLORS))
    for row, scene in enumerate(scenes):
        for thing in scene.objects:
            shapes[row, thing.row, thing.column] = OBJECT_NAMES.index(thing.shape)
            colors[row, thing.row, thing.column] = tuple(COLORS).index(thing.color)
    patch_px = GRID * CELL_PX // side
    cell = (torch.arange(side) * patch_px + patch_px // 2) // CELL_PX
    return tuple(labels[:, cell][:, :, cell].flatten(1) for labels in (shapes, colors))  # type: ignore[return-value]


class _Learner(nn.Module):
    """The tower with heads that are thrown away."""

    def __init__(self, model: ShowoModel) -> None:
        super().__init__()
        assert model.config.clip is not None
        self.tower = model.clip
        self.norm = nn.LayerNorm(model.config.clip.hidden_size)
        self.heads = nn.ModuleList(
            nn.Linear(model.config.clip.hidden_size, num_classes + 1)
            for num_classes in (len(OBJECT_NAMES), len(COLORS))
        )

    def forward(self, images: Tensor, labels: tuple[Tensor, Tensor]) -> Tensor:
        """Return the mean loss of both heads on both blocks."""
        blocks = self.tower(pixel_values=images, output_hidden_states=True).hidden_states[-2:]
        losses = [
            F.cross_entropy(head(self.norm(block[:, 1:])).flatten(0, 1), target.flatten())
            for block in blocks
            for head, target in zip(self.heads, labels, strict=True)
        ]
        return torch.stack(losses).mean()


def pretrain_tower(model: ShowoModel, recipe: TowerRecipe, *, directory: Path, seed: int) -> None:
    """Train the vision tower in place; `tower.pt` and `tower.jsonl` in `directory` keep its state and losses."""
    assert model.config.clip is not None
    side = model.config.clip.side
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        learner = _Learner(model)

    def loss(step: int) -> Tensor:
        numbers = range(step * recipe.batch_size, (step + 1) * recipe.batch_size)
        scenes = [(sample_scene if number % 2 == 0 else crowded_scene)(seed, number) for number in numbers]
        return learner(model.normalised(pixels(scenes)), patch_labels(scenes, side=side))

    fit(learner, loss, recipe.fit, path=directory / "tower.pt")
    model.clip.requires_grad_(False)
    model.eval()
