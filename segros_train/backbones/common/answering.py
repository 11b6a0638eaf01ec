"""Answering questions about images, whatever the family's language model and its way of reading an image.

A batch of questions is read once, in rows padded on the right, which no valid position sees. Then either its answers
are continued with their most likely tokens, over the keys and values that were kept, or the first token of each choice
is scored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache

from segros_train.backbones.common.dialogues import IGNORED
from segros_train.backbones.common.modes import inference
from segros_train.backbones.common.recompute import sum_in_chunks
from segros_train.backbones.common.texts import TextTokenizer

if TYPE_CHECKING:
    from PIL.Image import Image
    from transformers import PretrainedConfig

__all__ = [
    "Asked",
    "Reader",
    "answer",
    "check_one_image_each",
    "choice_logprobs",
    "greedy",
    "next_token_loss",
    "supervised_places",
]

BATCH_SIZE = 32
CHUNK_BYTES = 2 * 2**30
"""What a chunk of answers' logits takes in training."""
LOGIT_BYTES = 16
"""Of one logit under bf16 autocast: itself, in float32, its log-probability, and the gradients of the first two."""


@dataclass(frozen=True)
class Asked:
    """A batch of questions with what is seen of their images, as a family's language model reads them.

    Attributes:
        config: The language model's, which says what its cache is like.
        lengths: [B] long, number of places of each question, those of images included.
        read: Return the last states [B, S, D] of whole questions and fill `cache`, padding included.
        step: Return the last states [B, D] of one more token each, of ids `tokens` [B] at `positions` [B], padding not
            counted; of the keys in `cache`, their own the last, `valid` [B, keys] bool is False on padding.
        logits: Return logits [B, vocabulary] of states [B, D].
    """

    config: PretrainedConfig
    lengths: Tensor
    read: Callable[..., Tensor]
    step: Callable[..., Tensor]
    logits: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Reader:
    """How a family is asked about images.

    Attributes:
        model: What is run, in eval mode and without gradient.
        check: Raise ValueError unless the images of every question can be read.
        ask: Prepare a batch of images and questions.
        first_ids: Return the ids of a choice's first token, none where it has none.
        tokenizer: Ends answers and gives their text.
    """

    model: nn.Module
    check: Callable[[Sequence[Sequence[Image]]], None]
    ask: Callable[[Sequence[Sequence[Image]], Sequence[str]], Asked]
    first_ids: Callable[[str], Sequence[int]]
    tokenizer: TextTokenizer


def check_one_image_each(family: str, images: Sequence[Sequence[Image]]) -> None:
    """Raise ValueError unless every question is about exactly one image."""
    for index, pictures in enumerate(images):
        if len(pictures) != 1:
            raise ValueError(f"{family} reads one image per question; question {index} has {len(pictures)}.")


def _first_logits(asked: Asked, cache: DynamicCache) -> Tensor:
    """Fill the cache and return the logits [B, vocabulary] of the first token of each answer."""
    states, lengths = asked.read(cache=cache), asked.lengths
    return asked.logits(states[torch.arange(len(states), device=lengths.device), lengths - 1])


def greedy(asked: Asked, *, end_id: int, max_new_tokens: int) -> list[list[int]]:
    """Continue each question with its most likely tokens, up to and without the end of the turn.

    Args:
        asked: B questions.
        end_id: Id that ends an answer; -1 for none.
        max_new_tokens: Largest length of an answer, at least 1.
    """
    cache, lengths = DynamicCache(config=asked.config), asked.lengths
    token = _first_logits(asked, cache).argmax(dim=1)
    valid = torch.arange(cache.get_seq_length(), device=lengths.device) < lengths.unsqueeze(1)
    tokens, ended = [token], token == end_id
    while len(tokens) < max_new_tokens and not bool(ended.all()):
        valid = F.pad(valid, (0, 1), value=True)
        states = asked.step(tokens=token, positions=lengths + len(tokens) - 1, valid=valid, cache=cache)
        token = asked.logits(states).argmax(dim=1)
        tokens.append(token)
        ended = ended | (token == end_id)
    answers = torch.stack(tokens, dim=1).tolist()
    return [row[: row.index(end_id)] if end_id in row else row for row in answers]


def answer(
    reader: Reader, images: Sequence[Sequence[Image]], questions: Sequence[str], *, max_new_tokens: int
) -> list[str]:
    """Answer each question about its images by greedy decoding; see `Backbone.answer`.

    Raises:
        ValueError: If answers may have no token, or the images are not as many as the questions need.
    """
    if max_new_tokens < 1:
        raise ValueError(f"An answer needs at least one token, asked for {max_new_tokens}.")
    answers: list[str] = []
    for asked, _ in _batches(reader, images, questions):
        ids = greedy(asked, end_id=reader.tokenizer.end_id, max_new_tokens=max_new_tokens)
        answers += [reader.tokenizer.text(row) for row in ids]
    return answers


def choice_logprobs(
    reader: Reader, images: Sequence[Sequence[Image]], questions: Sequence[str], choices: Sequence[Sequence[str]]
) -> list[list[float]]:
    """Score the first token of each choice; see `Backbone.choice_logprobs`.

    Raises:
        ValueError: If a choice has no token, or choices or images are not as many as the questions need.
    """
    if len(choices) != len(questions):
        raise ValueError(f"{len(questions)} questions have {len(choices)} lists of choices.")
    tokens = [[reader.first_ids(choice) for choice in row] for row in choices]
    if not all(all(row) for row in tokens):
        raise ValueError("A choice has no token to score.")
    scores: list[list[float]] = []
    for asked, start in _batches(reader, images, questions):
        logits = _first_logits(asked, DynamicCache(config=asked.config))
        logprobs = logits.float().log_softmax(dim=1).cpu()
        rows = tokens[start : start + len(logprobs)]
        scores += [[float(row[index]) for (index,) in ids] for row, ids in zip(logprobs, rows, strict=True)]
    return scores


def _batches(
    reader: Reader, images: Sequence[Sequence[Image]], questions: Sequence[str]
) -> Iterator[tuple[Asked, int]]:
    """Yield questions ready to be read, and the index of the first, inside the inference context."""
    if len(images) != len(questions):
        raise ValueError(f"{len(questions)} questions have {len(images)} lists of images.")
    reader.check(images)
    for start in range(0, len(questions), BATCH_SIZE):
        batch = slice(start, start + BATCH_SIZE)
        with inference(reader.model):
            yield reader.ask(images[batch], questions[batch]), start


def supervised_places(labels: Tensor) -> Tensor:
    """Return the places [R] of the flat [B * (S - 1)] states whose next token has a label other than -100.

    Args:
        labels: [B, S] long.

    Raises:
        ValueError: If nothing is supervised.
    """
    places = (labels[:, 1:] != IGNORED).flatten().nonzero().squeeze(1)
    if not len(places):
        raise ValueError("No token of an answer is left to learn from; raise max_dialogue_tokens.")
    return places


def next_token_loss(head: nn.Linear, states: Tensor, labels: Tensor) -> Tensor:
    """Return the mean negative log-likelihood of labelled tokens given what precedes them, a scalar.

    Logits are computed again for their gradient, a chunk of tokens at a time: the vocabulary is large.

    Args:
        head: From states [R, D] to logits [R, vocabulary].
        states: [B, S, D] last states of the language model.
        labels: [B, S] long, the id where it is supervised, else -100.

    Raises:
        ValueError: If nothing is supervised.
    """
    places = supervised_places(labels)
    row, column = places // (labels.shape[1] - 1), places % (labels.shape[1] - 1)

    def total(states: Tensor, labels: Tensor) -> Tensor:
        logits = head(states)
        return F.cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), labels, reduction="sum")

    chunk = max(1, CHUNK_BYTES // (LOGIT_BYTES * head.out_features))
    return sum_in_chunks(total, states[row, column], labels[row, column + 1], chunk=chunk) / len(places)
