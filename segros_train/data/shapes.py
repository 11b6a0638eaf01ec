"""The embedded world as training data: captioned scenes, and scenes with a question.

Scenes and their images are in `shapes_world.py`, words about them in `shapes_language.py`. The same
(seed, index) always gives the same sample.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from segros_train.data import GenerationSample, InstructionSample
from segros_train.data.shapes_language import caption, question, spread_caption
from segros_train.data.shapes_world import GRID, IMAGE_PX, Scene, Tag, render, sample_scene, spread_scene

if TYPE_CHECKING:
    from segros_train.data import GenerationSource

__all__ = ["Alternating", "GenerationSet", "InstructionSet", "SpreadSet", "cells"]


def cells(scene: Scene) -> tuple[int, ...]:
    """Return the cells of a scene that hold an object, in raster order."""
    return tuple(sorted(thing.row * GRID + thing.column for thing in scene.objects))


def _picture(scene: Scene, drawn: bool) -> Image.Image:
    return render(scene) if drawn else Image.new("RGB", (IMAGE_PX, IMAGE_PX))


@dataclass(frozen=True)
class GenerationSet:
    """Captioned scenes: a `GenerationSource`.

    Attributes:
        seed: Seed of the scenes.
        size: Number of scenes.
        drawn: Whether to paint them; not where a backbone looks latents up by item id.
    """

    seed: int = 0
    size: int = 1_000_000
    drawn: bool = True

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> GenerationSample:
        scene = sample_scene(self.seed, index)
        return GenerationSample(
            f"shapes-{self.seed}-{index}", _picture(scene, self.drawn), caption(scene), cells(scene)
        )


@dataclass(frozen=True)
class InstructionSet:
    """Scenes with a question and its answer: an `InstructionSource`; attributes as `GenerationSet`."""

    seed: int = 1
    size: int = 1_000_000
    drawn: bool = True

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> InstructionSample:
        scene = sample_scene(self.seed, index)
        rng = np.random.default_rng((self.seed, index, 1))
        picture = _picture(scene, self.drawn)
        return InstructionSample(f"shapes-qa-{self.seed}-{index}", picture, (question(scene, rng),))


@dataclass(frozen=True)
class SpreadSet:
    """Scenes whose objects are spread over half of the cells: a `GenerationSource`.

    Attributes:
        seed: Seed of the scenes.
        size: Number of scenes.
        tag: What they are about; any tag when None.
        drawn: As in `GenerationSet`.
    """

    seed: int = 0
    size: int = 1_000_000
    tag: Tag | None = None
    drawn: bool = True

    def __len__(self) -> int:
        return self.size

    def item_id(self, index: int) -> str:
        """Return the id of a sample."""
        return f"shapes-spread-{self.tag or 'any'}-{self.seed}-{index}"

    def scene(self, index: int) -> Scene:
        """Return the spread scene of a sample."""
        return spread_scene(sample_scene(self.seed, index, tag=self.tag), self.seed)

    def __getitem__(self, index: int) -> GenerationSample:
        scene = self.scene(index)
        words = spread_caption(sample_scene(self.seed, index, tag=self.tag))
        return GenerationSample(self.item_id(index), _picture(scene, self.drawn), words, cells(scene))


@dataclass(frozen=True)
class Alternating:
    """Two sets in one, a `GenerationSource`: every `every`-th sample is of the first, the others of the second."""

    first: GenerationSource
    second: GenerationSource
    every: int

    def __len__(self) -> int:
        return min(len(self.first) * self.every, len(self.second) * self.every // max(self.every - 1, 1))

    def __getitem__(self, index: int) -> GenerationSample:
        turn, rest = divmod(index, self.every)
        return self.second[turn * (self.every - 1) + rest - 1] if rest else self.first[turn]
