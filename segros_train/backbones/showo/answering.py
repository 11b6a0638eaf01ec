"""Reading an image with a text, and answering: the image-to-text half of Show-o.

The image stands behind the task token, as projected patches of the vision tower or as codes; its columns are seen by
every position, the rest is causal. Rows are padded on the right, which no valid position sees.

Source: showlab/Show-o inference_mmu.py, models/modeling_showo.py (mmu_generate) @ 45a5a2de
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache

from segros_train.backbones.showo.layout import reading_mask
from segros_train.backbones.showo.model import ShowoModel, inference
from segros_train.backbones.showo.prompts import Dialogue

if TYPE_CHECKING:
    from PIL.Image import Image

    from segros_train.backbones.showo.adapter import Showo

__all__ = ["answer", "choice_logprobs", "greedy", "read"]

BATCH_SIZE = 32
PADDING_ID = 0


def read(
    model: ShowoModel,
    image: Tensor,
    dialogues: Sequence[Dialogue],
    *,
    everything: bool,
    cache: DynamicCache | None = None,
) -> Tensor:
    """Return the language model's last states [B, S, D] over head, image and tail of each dialogue.

    Args:
        model: The model.
        image: [B, I, D] embedded codes or projected features.
        dialogues: B dialogues with heads of one length.
        everything: Whether head and closing token are seen by all as well, as where codes are read.
        cache: Filled with keys and values, padding included, when given.
    """
    width = max(len(dialogue.tail) for dialogue in dialogues)
    heads = torch.tensor([dialogue.head for dialogue in dialogues], device=image.device)
    tails = [[*dialogue.tail, *[PADDING_ID] * (width - len(dialogue.tail))] for dialogue in dialogues]
    parts = [model.embed(heads), image, model.embed(torch.tensor(tails, dtype=torch.long, device=image.device))]
    sequence = torch.cat(parts, dim=1)
    start, stop = heads.shape[1], heads.shape[1] + image.shape[1]
    first, last = (0, stop + 1) if everything else (start, stop)
    mask = reading_mask(sequence.shape[1], first=first, last=last, device=image.device)
    positions = torch.arange(sequence.shape[1], device=image.device).unsqueeze(0)
    return model.hidden(sequence, positions, mask=mask, cache=cache)


def _first_logits(
    model: ShowoModel, image: Tensor, dialogues: Sequence[Dialogue], cache: DynamicCache, *, everything: bool
) -> Tensor:
    """Fill the cache and return the logits [B, vocabulary] of the first token of each answer."""
    states = read(model, image, dialogues, everything=everything, cache=cache)
    return model.logits(states[torch.arange(len(states)), _lengths(image, dialogues) - 1])


def _lengths(image: Tensor, dialogues: Sequence[Dialogue]) -> Tensor:
    return torch.tensor(
        [len(dialogue.head) + image.shape[1] + len(dialogue.tail) for dialogue in dialogues], device=image.device
    )


def greedy(
    model: ShowoModel,
    image: Tensor,
    dialogues: Sequence[Dialogue],
    *,
    end_id: int,
    max_new_tokens: int,
    everything: bool,
) -> list[list[int]]:
    """Continue each dialogue with its most likely tokens, up to and without the end of the turn.

    Args:
        model: The model.
        image: [B, I, D] embedded codes or projected features.
        dialogues: B questions.
        end_id: Id that ends an answer; -1 for none.
        max_new_tokens: Largest length of an answer, at least 1.
        everything: As in `read`.
    """
    cache = DynamicCache(config=model.showo.config)
    lengths = _lengths(image, dialogues)
    token = _first_logits(model, image, dialogues, cache, everything=everything).argmax(dim=1)
    valid = torch.arange(cache.get_seq_length(), device=image.device) < lengths.unsqueeze(1)
    tokens, ended = [token], token == end_id
    while len(tokens) < max_new_tokens and not bool(ended.all()):
        valid = F.pad(valid, (0, 1), value=True)
        state = model.hidden(
            model.embed(token).unsqueeze(1),
            (lengths + len(tokens) - 1).unsqueeze(1),
            mask=valid[:, None, None],
            cache=cache,
        )
        token = model.logits(state[:, 0]).argmax(dim=1)
        tokens.append(token)
        ended = ended | (token == end_id)
    answers = torch.stack(tokens, dim=1).tolist()
    return [row[: row.index(end_id)] if end_id in row else row for row in answers]


def answer(
    backbone: Showo, images: Sequence[Sequence[Image]], questions: Sequence[str], *, max_new_tokens: int
) -> list[str]:
    """Answer each question about its image; see `Backbone.answer`."""
    if max_new_tokens < 1:
        raise ValueError(f"An answer needs at least one token, asked for {max_new_tokens}.")
    answers: list[str] = []
    for image, dialogues, _ in _batches(backbone, images, questions):
        ids = greedy(
            backbone.model,
            image,
            dialogues,
            end_id=backbone.tokenizer.end_id,
            max_new_tokens=max_new_tokens,
            everything=not backbone.has_tower,
        )
        answers += [backbone.tokenizer.text(row) for row in ids]
    return answers


def choice_logprobs(
    backbone: Showo,
    images: Sequence[Sequence[Image]],
    questions: Sequence[str],
    choices: Sequence[Sequence[str]],
) -> list[list[float]]:
    """Score the first token of each choice; see `Backbone.choice_logprobs`."""
    if len(choices) != len(questions):
        raise ValueError(f"{len(questions)} questions have {len(choices)} lists of choices.")
    tokens = [[backbone.tokenizer.ids(f" {choice}")[:1] for choice in row] for row in choices]
    if not all(
        choice.strip() and ids
        for row, found in zip(choices, tokens, strict=True)
        for choice, ids in zip(row, found, strict=True)
    ):
        raise ValueError("A choice has no token to score.")
    scores: list[list[float]] = []
    for image, dialogues, start in _batches(backbone, images, questions):
        cache = DynamicCache(config=backbone.model.showo.config)
        logits = _first_logits(backbone.model, image, dialogues, cache, everything=not backbone.has_tower)
        logprobs = logits.log_softmax(dim=1).cpu()
        rows = tokens[start : start + len(dialogues)]
        scores += [[float(row[index]) for (index,) in ids] for row, ids in zip(logprobs, rows, strict=True)]
    return scores


def _batches(
    backbone: Showo, images: Sequence[Sequence[Image]], questions: Sequence[str]
) -> Iterator[tuple[Tensor, list[Dialogue], int]]:
    """Yield embedded images with their questions, and the index of the first, inside the inference context."""
    if len(images) != len(questions):
        raise ValueError(f"{len(questions)} questions have {len(images)} lists of images.")
    for index, pictures in enumerate(images):
        if len(pictures) != 1:
            raise ValueError(f"Show-o reads one image per question; question {index} has {len(pictures)}.")
    prepare = backbone.image_transform("understanding")
    rng = torch.Generator()
    for start in range(0, len(questions), BATCH_SIZE):
        pixels = torch.stack([prepare(pictures[0], rng) for pictures in images[start : start + BATCH_SIZE]])
        dialogues = [
            backbone.tokenizer.question(text, tower=backbone.has_tower)
            for text in questions[start : start + BATCH_SIZE]
        ]
        with inference(backbone.model):
            yield backbone.image_inputs(pixels.to(backbone.device)), dialogues, start
