"""Dialogues about one image that stands between their head and their tail, in rows padded on the right."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["IGNORED", "PADDING_ID", "Dialogue", "embedded", "labels_of", "lengths_of"]

IGNORED = -100
"""Label of a token that is not supervised."""
PADDING_ID = 0
"""Id in places that no valid position sees."""


@dataclass(frozen=True)
class Dialogue:
    """A dialogue as ids; the image stands between `head` and `tail`.

    Attributes:
        head: Ids in front of the image.
        tail: Ids behind it.
        labels: One per id of `tail`: the id where it is an answer's, else -100.
    """

    head: tuple[int, ...]
    tail: tuple[int, ...]
    labels: tuple[int, ...] = ()


def embedded(dialogues: Sequence[Dialogue], image: Tensor, embed: Callable[[Tensor], Tensor]) -> Tensor:
    """Return head, image and tail of each dialogue, [B, S, D].

    Args:
        dialogues: B dialogues with heads of one length.
        image: [B, I, D] what the language model reads of each image.
        embed: Return rows [B, L, D] of the embedding table, of ids [B, L].
    """
    width = max(len(dialogue.tail) for dialogue in dialogues)
    heads = torch.tensor([dialogue.head for dialogue in dialogues], device=image.device)
    tails = [[*dialogue.tail, *[PADDING_ID] * (width - len(dialogue.tail))] for dialogue in dialogues]
    return torch.cat([embed(heads), image, embed(torch.tensor(tails, dtype=torch.long, device=image.device))], dim=1)


def lengths_of(dialogues: Sequence[Dialogue], image: Tensor) -> Tensor:
    """Return the number of places of each dialogue, its image [I, D] of [B, I, D] included, [B] long."""
    return torch.tensor(
        [len(dialogue.head) + image.shape[1] + len(dialogue.tail) for dialogue in dialogues], device=image.device
    )


def labels_of(dialogues: Sequence[Dialogue], image: Tensor) -> Tensor:
    """Return the labels [B, S] long of what `embedded` returns: the id where it is an answer's, else -100."""
    labels = torch.full((len(dialogues), int(lengths_of(dialogues, image).max())), IGNORED)
    for row, dialogue in zip(labels, dialogues, strict=True):
        start = len(dialogue.head) + image.shape[1]
        row[start : start + len(dialogue.labels)] = torch.tensor(dialogue.labels)
    return labels.to(image.device)
