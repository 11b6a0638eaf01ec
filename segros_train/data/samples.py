"""Training data: samples, sources, and the order they are drawn in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from segros_train.types import Turn

__all__ = ["GenerationSample", "GenerationSource", "InstructionSample", "InstructionSource"]


@dataclass(frozen=True)
class GenerationSample:
    """An RGB image with its caption.

    Attributes:
        item_id: Unique in the set.
        image: The picture.
        caption: As written.
        latents: What frozen parts made of the picture beforehand; None where they are to be made.
    """

    item_id: str
    image: Image
    caption: str
    latents: Mapping[str, Tensor] | None = None


@dataclass(frozen=True)
class InstructionSample:
    """An RGB image with a dialogue about it."""

    item_id: str
    image: Image
    dialogue: tuple[Turn, ...]


class GenerationSource(Protocol):
    """A map-style set of captioned images: an index always gives the same sample."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> GenerationSample: ...


class InstructionSource(Protocol):
    """A map-style set of dialogues: an index always gives the same sample."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> InstructionSample: ...
