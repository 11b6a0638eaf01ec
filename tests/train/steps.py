"""A micro-step of a backbone, as the loop takes it."""

from __future__ import annotations

from torch import Tensor

from segros_train.backbone import Backbone
from segros_train.draws import Draws
from segros_train.types import Embeddings, GenerationBatch, Supervision


def draws_of(size: int, seed: int = 0) -> Draws:
    """Return the draws of the first items of a data set."""
    return Draws(seed, 0, tuple(range(size)))


def embed(backbone: Backbone, batch: GenerationBatch) -> Embeddings:
    """Return what methods see of a batch."""
    return backbone.embed(backbone.encode(batch))


def t2i_loss(backbone: Backbone, batch: GenerationBatch, supervision: Supervision, *, seed: int = 0) -> Tensor:
    """Return the loss of a batch by itself, encoded anew."""
    return backbone.t2i_loss(backbone.encode(batch), supervision, draws_of(len(batch.captions), seed))
