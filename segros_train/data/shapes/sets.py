"""The embedded world as training data: captioned scenes, and scenes with a question.

Scenes and their images are in `world.py`, words about them in `captions.py`. The same
(seed, index) always gives the same sample.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from segros_train.data.samples import GenerationSample, InstructionSample
from segros_train.data.shapes.captions import caption, question
from segros_train.data.shapes.world import render, sample_scene

__all__ = ["GenerationSet", "InstructionSet"]


@dataclass(frozen=True)
class GenerationSet:
    """Captioned scenes: a `GenerationSource`.

    Attributes:
        seed: Seed of the scenes.
        size: Number of scenes.
    """

    seed: int = 0
    size: int = 1_000_000

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> GenerationSample:
        scene = sample_scene(self.seed, index)
        return GenerationSample(f"shapes-{self.seed}-{index}", render(scene), caption(scene))


@dataclass(frozen=True)
class InstructionSet:
    """Scenes with a question and its answer: an `InstructionSource`; attributes as `GenerationSet`."""

    seed: int = 1
    size: int = 1_000_000

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> InstructionSample:
        scene = sample_scene(self.seed, index)
        turn = question(scene, np.random.default_rng((self.seed, index, 1)))
        return InstructionSample(f"shapes-qa-{self.seed}-{index}", render(scene), (turn,))
