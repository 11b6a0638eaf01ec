"""Scenes of the embedded world as latents, encoded once because a tiny backbone's autoencoder is frozen by then."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from segros_train.data.shapes.world import COLORS, GRID, OBJECT_NAMES, Scene
from segros_train.files import replace_file
from segros_train.pretraining.tiny import pixels
from segros_train.weight_files import RESTART, read_weight_file

if TYPE_CHECKING:
    from segros_train.data.shapes.sets import GenerationSet, SpreadSet
    from segros_train.data.shapes.world import Tag

__all__ = ["MIXTURE", "NUM_KINDS", "EncodedScenes", "encode_scenes", "kinds", "scene_of", "stored_scenes"]

ENCODED_AT_ONCE = 64
NUM_KINDS = 1 + len(OBJECT_NAMES) * len(COLORS)
"""What a cell may show: nothing, or an object of a shape and a colour."""
MIXTURE: tuple[Tag, ...] = (
    *("single_object", "two_object", "counting", "colors", "position"),
    *("color_attr", "position", "color_attr", "two_object", "counting"),
)
"""Tags by turns for training in large batches: what is told of two things stands twice, and so do numbers."""


class _Encoder(Protocol):
    def encode_images(self, images: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class EncodedScenes:
    """Scenes as latents with captions.

    Attributes:
        latents: [S, ...] as the backbone's `encode_images` returns them, half precision.
        kinds: [S, M] uint8, what each cell holds; see `kinds`.
        captions: S captions.
    """

    latents: Tensor
    kinds: Tensor
    captions: tuple[str, ...]

    def rows(self, indices: Sequence[int]) -> EncodedScenes:
        """Return some scenes."""
        kept = torch.tensor(indices, dtype=torch.long)
        return EncodedScenes(self.latents[kept], self.kinds[kept], tuple(self.captions[index] for index in indices))

    @classmethod
    def joined(cls, parts: Sequence[EncodedScenes]) -> EncodedScenes:
        """Put scenes together."""
        return cls(
            torch.cat([part.latents for part in parts]),
            torch.cat([part.kinds for part in parts]),
            tuple(text for part in parts for text in part.captions),
        )


def kinds(scene: Scene) -> Tensor:
    """Return what each cell of a scene holds, [M] uint8 in raster order: 0 for nothing, else a shape and a colour."""
    cells = torch.zeros(GRID * GRID, dtype=torch.uint8)
    colors = tuple(COLORS)
    for thing in scene.objects:
        kind = 1 + OBJECT_NAMES.index(thing.shape) * len(colors) + colors.index(thing.color)
        cells[thing.row * GRID + thing.column] = kind
    return cells


def scene_of(scenes: GenerationSet | SpreadSet, index: int) -> tuple[Scene, str]:
    """Return the scene of an index and its caption."""
    return scenes.scene(index), scenes[index].caption


@torch.no_grad()
def encode_scenes(
    model: _Encoder, draw: Callable[[int], tuple[Scene, str]], num_scenes: int, *, device: torch.device | str = "cpu"
) -> EncodedScenes:
    """Encode scenes.

    Args:
        model: Its autoencoder encodes.
        draw: Give the scene of an index, and its caption.
        num_scenes: Indices are those below.
        device: Where the model is.

    Returns:
        The scenes, on the CPU.
    """
    parts = []
    for start in range(0, num_scenes, ENCODED_AT_ONCE):
        drawn = [draw(index) for index in range(start, min(start + ENCODED_AT_ONCE, num_scenes))]
        latents = model.encode_images(pixels([scene for scene, _ in drawn]).to(device)).half().cpu()
        held = torch.stack([kinds(scene) for scene, _ in drawn])
        parts.append(EncodedScenes(latents, held, tuple(text for _, text in drawn)))
    return EncodedScenes.joined(parts)


def stored_scenes(path: Path, encode: Callable[[], Sequence[EncodedScenes]]) -> list[EncodedScenes]:
    """Return the sets of scenes in a file, encoding and storing them first where it does not exist."""
    if not path.exists():
        replace_file(path, functools.partial(torch.save, [vars(part) for part in encode()]))
    return [EncodedScenes(**part) for part in read_weight_file(path, remedy=RESTART)]
