"""Methods: each decides what to show, what to hide and where to take the loss.

A method is a frozen dataclass, so that an ablation is a `dataclasses.replace` of one value.
Its module imports torch only inside `supervise`, so that declarations stay quick to read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor

    from segros_train.draws import Draws
    from segros_train.types import Embeddings, Supervision

__all__ = ["Method", "TrainTask"]


@runtime_checkable
class Method(Protocol):
    """Decide the supervision of one batch.

    Attributes:
        needs_embeddings: Whether `supervise` reads the values of embeddings, or their grids alone.
    """

    @property
    def needs_embeddings(self) -> bool: ...

    def supervise(self, seen: Embeddings, masking_ratio: Tensor | None, draws: Draws) -> Supervision:
        """Return what the backbone shall realise for this batch.

        Args:
            seen: Embeddings of captions and images, without gradient; of no width unless `needs_embeddings`.
            masking_ratio: [B] share of hidden latent cells, drawn from the backbone's native schedule;
                None where the backbone masks nothing.
            draws: Source of every draw, each item's by itself; on the CPU.
        """
        ...


@dataclass(frozen=True)
class TrainTask:
    """A way to fine-tune that has a name on the command line and a row in the tables.

    Attributes:
        name: Name on the command line, e.g. `"segros"`.
        title: Name in tables, as the paper writes it, e.g. `"Ours"`.
        method: What decides the supervision; None trains nothing (the paper's "w/o SFT").
        attention: Attention over the image block in training and sampling (paper section 8.2, or the backbone's).
        hint_slot: Where hints stand; None takes the backbone's default for the method.
        recipe: Name of the recipe; None takes the backbone's.
        paper: Reference of the published numbers, e.g. `"Table 1"`.
    """

    retired: ClassVar = {"from_scratch": False}
    """Fields of old, at the one value that results were published with: they stay in keys."""

    name: str
    title: str
    method: Method | None
    attention: Literal["paper", "native"] = "native"
    hint_slot: Literal["prefix", "user"] | None = None
    recipe: str | None = None
    paper: str = ""
