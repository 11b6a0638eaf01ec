"""Reading an image with a text, and answering: the image-to-text half of Harmon.

The whole image, all cells and then the buffers, stands between the start of the user's turn and the question.
Attention is causal. Rows are padded on the right, which no valid position sees.

Source: wusize/Harmon scripts/image2text.py @ 4eb60876
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache

from segros_train.backbones.harmon.model import HarmonModel, inference
from segros_train.backbones.harmon.prompts import IGNORED, Dialogue
from segros_train.backbones.harmon.transforms import PadToSquare

if TYPE_CHECKING:
    from PIL.Image import Image

    from segros_train.backbones.harmon.adapter import Harmon

__all__ = ["answer", "choice_logprobs", "greedy", "next_token_loss", "read"]

BATCH_SIZE = 32
PADDING_ID = 0


def read(
    model: HarmonModel, image: Tensor, dialogues: Sequence[Dialogue], *, cache: DynamicCache | None = None
) -> Tensor:
    """Return the language model's last states [B, S, D] over head, image and tail of each dialogue.

    Args:
        model: The model.
        image: [B, I, D] encodings of whole images.
        dialogues: B dialogues with heads of one length.
        cache: Filled with keys and values, padding included, when given.
    """
    width = max(len(dialogue.tail) for dialogue in dialogues)
    heads = torch.tensor([dialogue.head for dialogue in dialogues], device=image.device)
    tails = [[*dialogue.tail, *[PADDING_ID] * (width - len(dialogue.tail))] for dialogue in dialogues]
    embed = model.llm.model.embed_tokens
    parts = [embed(heads), image, embed(torch.tensor(tails, dtype=torch.long, device=image.device))]
    return model.llm.model(
        inputs_embeds=torch.cat(parts, dim=1), past_key_values=cache, use_cache=cache is not None
    ).last_hidden_state


def next_token_loss(model: HarmonModel, states: Tensor, labels: Tensor) -> Tensor:
    """Return the mean negative log-likelihood of labelled tokens given what precedes them, a scalar.

    Args:
        model: The model.
        states: [B, S, D] last states of the language model.
        labels: [B, S] long, the id where it is supervised, else -100.

    Raises:
        ValueError: If nothing is supervised.
    """
    following = labels[:, 1:]
    rows = (following != IGNORED).flatten().nonzero().squeeze(1)
    if not len(rows):
        raise ValueError("No token of an answer is left to learn from; raise max_dialogue_tokens.")
    logits = model.llm.lm_head(states[:, :-1].flatten(0, 1)[rows])
    return F.cross_entropy(logits.float(), following.flatten()[rows])


def _first_logits(model: HarmonModel, image: Tensor, dialogues: Sequence[Dialogue], cache: DynamicCache) -> Tensor:
    """Fill the cache and return the logits [B, vocabulary] of the first token of each answer."""
    states = read(model, image, dialogues, cache=cache)
    return model.llm.lm_head(states[torch.arange(len(states)), _lengths(image, dialogues) - 1])


def _lengths(image: Tensor, dialogues: Sequence[Dialogue]) -> Tensor:
    return torch.tensor(
        [len(dialogue.head) + image.shape[1] + len(dialogue.tail) for dialogue in dialogues], device=image.device
    )


def greedy(
    model: HarmonModel, image: Tensor, dialogues: Sequence[Dialogue], *, end_id: int, max_new_tokens: int
) -> list[list[int]]:
    """Continue each dialogue with its most likely tokens, up to and without the end of the turn.

    Args:
        model: The model.
        image: [B, I, D] encodings of whole images.
        dialogues: B questions.
        end_id: Id that ends an answer; -1 for none.
        max_new_tokens: Largest length of an answer, at least 1.
    """
    cache = DynamicCache(config=model.llm.config)
    lengths = _lengths(image, dialogues)
    token = _first_logits(model, image, dialogues, cache).argmax(dim=1)
    valid = torch.arange(cache.get_seq_length(), device=image.device) < lengths.unsqueeze(1)
    tokens, ended = [token], token == end_id
    while len(tokens) < max_new_tokens and not bool(ended.all()):
        valid = F.pad(valid, (0, 1), value=True)
        state = model.llm.model(
            inputs_embeds=model.llm.model.embed_tokens(token).unsqueeze(1),
            attention_mask=valid[:, None, None],
            position_ids=(lengths + len(tokens) - 1).unsqueeze(1),
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        token = model.llm.lm_head(state[:, 0]).argmax(dim=1)
        tokens.append(token)
        ended = ended | (token == end_id)
    answers = torch.stack(tokens, dim=1).tolist()
    return [answer[: answer.index(end_id)] if end_id in answer else answer for answer in answers]


def answer(
    backbone: Harmon, images: Sequence[Sequence[Image]], questions: Sequence[str], *, max_new_tokens: int
) -> list[str]:
    """Answer each question about its image; see `Backbone.answer`."""
    if max_new_tokens < 1:
        raise ValueError(f"An answer needs at least one token, asked for {max_new_tokens}.")
    answers: list[str] = []
    for image, dialogues, _ in _batches(backbone, images, questions):
        ids = greedy(backbone.model, image, dialogues, end_id=backbone.tokenizer.end_id, max_new_tokens=max_new_tokens)
        answers += [backbone.tokenizer.text(row) for row in ids]
    return answers


def choice_logprobs(
    backbone: Harmon,
    images: Sequence[Sequence[Image]],
    questions: Sequence[str],
    choices: Sequence[Sequence[str]],
) -> list[list[float]]:
    """Score the first token of each choice; see `Backbone.choice_logprobs`."""
    if len(choices) != len(questions):
        raise ValueError(f"{len(questions)} questions have {len(choices)} lists of choices.")
    tokens = [[backbone.tokenizer.ids(choice)[:1] for choice in row] for row in choices]
    if not all(all(row) for row in tokens):
        raise ValueError("A choice has no token to score.")
    scores: list[list[float]] = []
    for image, dialogues, start in _batches(backbone, images, questions):
        cache = DynamicCache(config=backbone.model.llm.config)
        logprobs = _first_logits(backbone.model, image, dialogues, cache).float().log_softmax(dim=1)
        rows = tokens[start : start + len(dialogues)]
        scores += [[float(row[index]) for (index,) in ids] for row, ids in zip(logprobs.cpu(), rows, strict=True)]
    return scores


def _batches(
    backbone: Harmon, images: Sequence[Sequence[Image]], questions: Sequence[str]
) -> Iterator[tuple[Tensor, list[Dialogue], int]]:
    """Yield encoded images with their questions, and the index of the first, inside the inference context."""
    if len(images) != len(questions):
        raise ValueError(f"{len(questions)} questions have {len(images)} lists of images.")
    for index, pictures in enumerate(images):
        if len(pictures) != 1:
            raise ValueError(f"Harmon reads one image per question; question {index} has {len(pictures)}.")
    prepare = PadToSquare(backbone.card.image_size_px)
    for start in range(0, len(questions), BATCH_SIZE):
        pixels = torch.stack([prepare(pictures[0]) for pictures in images[start : start + BATCH_SIZE]])
        dialogues = [backbone.tokenizer.question(text) for text in questions[start : start + BATCH_SIZE]]
        with inference(backbone.model):
            latents = backbone.model.encode_images(pixels.to(backbone.device))
            yield backbone.model.whole_image(latents), dialogues, start
