"""The embedded world as training data: captioned scenes, and scenes with a question.

Scenes and their images are in `shapes_world.py`, words about them in `shapes_language.py`. The same
(seed, index) always gives the same sample.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from segros_train.data import GenerationSample, InstructionSample
from segros_train.data.shapes_language import caption, question
from segros_train.data.shapes_world import matching_crowd, render, sample_scene

__all__ = ["CrowdSet", "GenerationSet", "InstructionSet", "PretrainingSet"]

CROWD_EVERY = 6


@dataclass(frozen=True)
class GenerationSet:
    """Captioned scenes: a `GenerationSource`."""

    seed: int = 0
    size: int = 1_000_000

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> GenerationSample:
        scene = sample_scene(self.seed, index)
        return GenerationSample(f"shapes-{self.seed}-{index}", render(scene), caption(scene))


@dataclass(frozen=True)
class InstructionSet:
    """Scenes with a question and its answer: an `InstructionSource`."""

    seed: int = 1
    size: int = 1_000_000

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> InstructionSample:
        scene = sample_scene(self.seed, index)
        rng = np.random.default_rng((self.seed, index, 1))
        return InstructionSample(f"shapes-qa-{self.seed}-{index}", render(scene), (question(scene, rng),))


@dataclass(frozen=True)
class CrowdSet:
    """Captioned crowds of one shape and colour: a `GenerationSource`."""

    seed: int = 0
    size: int = 1_000_000

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> GenerationSample:
        scene = matching_crowd(self.seed, index)
        return GenerationSample(f"shapes-crowd-{self.seed}-{index}", render(scene), caption(scene))


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
