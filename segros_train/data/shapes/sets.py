"""The embedded world as training data: captioned scenes, and scenes with a question.

Scenes and their images are in `world.py`, words about them in `captions.py`. The same
(seed, index) always gives the same sample.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from segros_train.data.samples import GenerationSample, InstructionSample
from segros_train.data.shapes.captions import caption, question, spread_caption
from segros_train.data.shapes.world import (
    GRID,
    IMAGE_PX,
    Scene,
    Tag,
    matching_crowd,
    render,
    sample_scene,
    spread_scene,
)

if TYPE_CHECKING:
    from segros_train.data.samples import GenerationSource

__all__ = [
    "Alternating",
    "CrowdSet",
    "GenerationSet",
    "InstructionSet",
    "PretrainingSet",
    "SpreadSet",
    "cells",
]

CROWD_EVERY = 6


def cells(scene: Scene) -> tuple[int, ...]:
    """Return the cells of a scene that hold an object, in raster order."""
    return tuple(sorted(thing.row * GRID + thing.column for thing in scene.objects))


def _turn(tags: tuple[Tag, ...], index: int) -> tuple[Tag, ...]:
    """Return the tag whose turn it is, or nothing."""
    return (tags[index % len(tags)],) if tags else ()


def _picture(scene: Scene, drawn: bool) -> Image.Image:
    return render(scene) if drawn else Image.new("RGB", (IMAGE_PX, IMAGE_PX))


@dataclass(frozen=True)
class GenerationSet:
    """Captioned scenes: a `GenerationSource`.

    Attributes:
        seed: Seed of the scenes.
        size: Number of scenes.
        tags: What they are about, by turns; drawn when empty.
        drawn: Whether to paint them; not where a backbone looks latents up by item id.
    """

    seed: int = 0
    size: int = 1_000_000
    tags: tuple[Tag, ...] = ()
    drawn: bool = True

    def __len__(self) -> int:
        return self.size

    def item_id(self, index: int) -> str:
        """Return the id of a sample."""
        return "-".join(["shapes", *_turn(self.tags, index), str(self.seed), str(index)])

    def scene(self, index: int) -> Scene:
        """Return the scene of a sample."""
        return sample_scene(self.seed, index, tag=next(iter(_turn(self.tags, index)), None))

    def __getitem__(self, index: int) -> GenerationSample:
        scene = self.scene(index)
        return GenerationSample(self.item_id(index), _picture(scene, self.drawn), caption(scene), cells(scene))


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
        tags: What they are about, by turns; drawn when empty.
        drawn: As in `GenerationSet`.
    """

    seed: int = 0
    size: int = 1_000_000
    tags: tuple[Tag, ...] = ()
    drawn: bool = True

    def __len__(self) -> int:
        return self.size

    def item_id(self, index: int) -> str:
        """Return the id of a sample."""
        return "-".join(["shapes-spread", *_turn(self.tags, index), str(self.seed), str(index)])

    def _told(self, index: int) -> Scene:
        return sample_scene(self.seed, index, tag=next(iter(_turn(self.tags, index)), None))

    def scene(self, index: int) -> Scene:
        """Return the spread scene of a sample."""
        return spread_scene(self._told(index), self.seed)

    def __getitem__(self, index: int) -> GenerationSample:
        scene = self.scene(index)
        words = spread_caption(self._told(index))
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


@dataclass(frozen=True)
class CrowdSet:
    """Captioned crowds of one shape and colour: a `GenerationSource`."""

    seed: int = 0
    size: int = 1_000_000

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> GenerationSample:
        scene = matching_crowd(self.seed, index)
        return GenerationSample(f"shapes-crowd-{self.seed}-{index}", render(scene), caption(scene), cells(scene))


@dataclass(frozen=True)
class PretrainingSet:
    """Captioned scenes, every sixth one a crowd, so that reading is kept up: a `GenerationSource`."""

    seed: int = 0
    size: int = 1_000_000

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> GenerationSample:
        crowd, rest = divmod(index, CROWD_EVERY)
        return (GenerationSet(self.seed) if rest else CrowdSet(self.seed))[index if rest else crowd]
