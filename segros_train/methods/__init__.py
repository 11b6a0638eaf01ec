"""Methods: each decides what to show, what to hide and where to take the loss.

A method is a frozen dataclass, so that an ablation is a `dataclasses.replace` of one value.
Its module imports torch only inside `supervise`, so that declarations stay quick to read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from segros_train.types import Embeddings, Supervision

__all__ = ["Method"]


@runtime_checkable
class Method(Protocol):
    """Decide the supervision of one batch.

    Attributes:
        needs_embeddings: Whether `supervise` reads the values of embeddings, or their grids alone.
    """

    @property
    def needs_embeddings(self) -> bool: ...

    def supervise(self, seen: Embeddings, masking_ratio: Tensor | None, rng: Generator) -> Supervision:
        """Return what the backbone shall realise for this batch.

        Args:
            seen: Embeddings of captions and images, without gradient; of no width unless `needs_embeddings`.
            masking_ratio: [B] share of hidden latent cells, drawn from the backbone's native schedule;
                None where the backbone masks nothing.
            rng: Source of every draw, on the device of `seen`.
        """
        ...
