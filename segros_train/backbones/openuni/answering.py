"""Reading images with a text, and answering: the image-to-text half, which is InternVL's own and frozen.

An image to be understood is cut into tiles of the vision tower's size, as many as its shape asks for, and a small
copy of the whole follows them. Rows are padded on the right, which no valid position sees.

Source: OpenGVLab/InternVL3 model card (tiling, templates); wusize/OpenUni src/models @ d1703fc
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from PIL import Image as Images
from torch import Tensor
from transformers import DynamicCache

from segros_train.backbones.images import to_pixels
from segros_train.backbones.openuni.model import OpenUniModel, inference
from segros_train.backbones.openuni.prompts import IGNORED, PADDING_ID, Dialogue

if TYPE_CHECKING:
    from PIL.Image import Image

    from segros_train.backbones.openuni.adapter import OpenUni

__all__ = ["answer", "choice_logprobs", "greedy", "next_token_loss", "read_dialogues", "tiles"]

BATCH_SIZE = 32


def tiles(image: Image, *, size_px: int, max_tiles: int) -> list[Tensor]:
    """Cut an image into square tiles, its small copy last where there are several.

    The grid of tiles is the one of at most `max_tiles` whose shape is nearest the image's; of equals the larger,
    where the image has more than half of its pixels.

    Args:
        image: Any image.
        size_px: Side of a tile.
        max_tiles: Most tiles, the copy not counted; 1 takes the image as a whole.

    Returns:
        Tiles [3, size, size] in [-1, 1].
    """
    image = image.convert("RGB")
    columns, rows = _tile_grid(image.size, size_px=size_px, max_tiles=max_tiles)
    large = image.resize((columns * size_px, rows * size_px), Images.Resampling.BICUBIC)
    boxes = [
        (x * size_px, y * size_px, (x + 1) * size_px, (y + 1) * size_px) for y in range(rows) for x in range(columns)
    ]
    cut = [to_pixels(large.crop(box), size_px) for box in boxes]
    return cut if len(cut) == 1 else [*cut, to_pixels(image, size_px)]


def _tile_grid(size: tuple[int, int], *, size_px: int, max_tiles: int) -> tuple[int, int]:
    width, height = size
    sides = range(1, max_tiles + 1)
    grids = sorted(((x, y) for x in sides for y in sides if x * y <= max_tiles), key=lambda grid: grid[0] * grid[1])
    best, nearest = (1, 1), float("inf")
    for columns, rows in grids:
        distance = abs(width / height - columns / rows)
        large_enough = width * height > 0.5 * size_px**2 * columns * rows
        if distance < nearest or (distance == nearest and large_enough):
            best, nearest = (columns, rows), distance
    return best


def _rows(model: OpenUniModel, seen: Tensor, dialogues: Sequence[Dialogue], image_id: int) -> tuple[Tensor, Tensor]:
    """Embed dialogues, visual embeddings in their places; return [B, S, D] and which places are valid [B, S]."""
    width = max(len(dialogue.ids) for dialogue in dialogues)
    padded = [[*dialogue.ids, *[PADDING_ID] * (width - len(dialogue.ids))] for dialogue in dialogues]
    ids = torch.tensor(padded, device=seen.device)
    lengths = torch.tensor([len(dialogue.ids) for dialogue in dialogues], device=seen.device)
    rows = model.embed_ids(ids)
    rows = rows.masked_scatter((ids == image_id).unsqueeze(-1), seen.to(rows.dtype))
    return rows, torch.arange(width, device=seen.device) < lengths.unsqueeze(1)


def read_dialogues(
    model: OpenUniModel,
    seen: Tensor,
    dialogues: Sequence[Dialogue],
    *,
    image_id: int,
    cache: DynamicCache | None = None,
) -> Tensor:
    """Return the language model's last states [B, S, D].

    Args:
        model: The model.
        seen: [images * N, D] visual embeddings, in the order of the dialogues' image tokens.
        dialogues: B dialogues.
        image_id: Id that visual embeddings replace.
        cache: Filled with keys and values, padding included, when given.
    """
    rows, _ = _rows(model, seen, dialogues, image_id)
    return model.language(inputs_embeds=rows, past_key_values=cache, use_cache=cache is not None).last_hidden_state


def next_token_loss(model: OpenUniModel, seen: Tensor, dialogues: Sequence[Dialogue], *, image_id: int) -> Tensor:
    """Return the mean negative log-likelihood of labelled tokens given what precedes them, a scalar.

    Raises:
        ValueError: If nothing is supervised.
    """
    states = read_dialogues(model, seen, dialogues, image_id=image_id)
    width = states.shape[1]
    labels = [[*dialogue.labels, *[IGNORED] * (width - len(dialogue.labels))] for dialogue in dialogues]
    following = torch.tensor(labels, device=states.device)[:, 1:]
    kept = (following != IGNORED).flatten().nonzero().squeeze(1)
    if not len(kept):
        raise ValueError("No token of an answer is left to learn from; raise max_dialogue_tokens.")
    logits = model.lmm.lm_head(states[:, :-1].flatten(0, 1)[kept])
    return F.cross_entropy(logits.float(), following.flatten()[kept])


def _first_logits(
    model: OpenUniModel, seen: Tensor, dialogues: Sequence[Dialogue], image_id: int, cache: DynamicCache
) -> Tensor:
    """Fill the cache and return the logits [B, vocabulary] of the first token of each answer."""
    states = read_dialogues(model, seen, dialogues, image_id=image_id, cache=cache)
    last = torch.tensor([len(dialogue.ids) - 1 for dialogue in dialogues], device=states.device)
    return model.lmm.lm_head(states[torch.arange(len(states), device=states.device), last])


def greedy(
    model: OpenUniModel,
    seen: Tensor,
    dialogues: Sequence[Dialogue],
    *,
    image_id: int,
    end_id: int,
    max_new_tokens: int,
) -> list[list[int]]:
    """Continue each dialogue with its most likely tokens, up to and without the end of the turn.

    Args:
        model: The model.
        seen: [images * N, D] visual embeddings.
        dialogues: B questions.
        image_id: Id that visual embeddings replace.
        end_id: Id that ends an answer; -1 for none.
        max_new_tokens: Largest length of an answer, at least 1.
    """
    cache = DynamicCache(config=model.language.config)
    lengths = torch.tensor([len(dialogue.ids) for dialogue in dialogues], device=seen.device)
    token = _first_logits(model, seen, dialogues, image_id, cache).argmax(dim=1)
    valid = torch.arange(cache.get_seq_length(), device=seen.device) < lengths.unsqueeze(1)
    tokens, ended = [token], token == end_id
    while len(tokens) < max_new_tokens and not bool(ended.all()):
        valid = F.pad(valid, (0, 1), value=True)
        state = model.language(
            inputs_embeds=model.embed_ids(token).unsqueeze(1),
            attention_mask=valid.long(),
            position_ids=(lengths + len(tokens) - 1).unsqueeze(1),
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        token = model.lmm.lm_head(state[:, 0]).argmax(dim=1)
        tokens.append(token)
        ended = ended | (token == end_id)
    answers = torch.stack(tokens, dim=1).tolist()
    return [answer[: answer.index(end_id)] if end_id in answer else answer for answer in answers]


def answer(
    backbone: OpenUni, images: Sequence[Sequence[Image]], questions: Sequence[str], *, max_new_tokens: int
) -> list[str]:
    """Answer each question about its images; see `Backbone.answer`."""
    if max_new_tokens < 1:
        raise ValueError(f"An answer needs at least one token, asked for {max_new_tokens}.")
    tokenizer = backbone.tokenizer
    answers: list[str] = []
    for seen, dialogues, _ in _batches(backbone, images, questions):
        ids = greedy(
            backbone.model,
            seen,
            dialogues,
            image_id=tokenizer.image_id,
            end_id=tokenizer.end_id,
            max_new_tokens=max_new_tokens,
        )
        answers += [tokenizer.text(row) for row in ids]
    return answers


def choice_logprobs(
    backbone: OpenUni,
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
    for seen, dialogues, start in _batches(backbone, images, questions):
        cache = DynamicCache(config=backbone.model.language.config)
        logits = _first_logits(backbone.model, seen, dialogues, backbone.tokenizer.image_id, cache)
        logprobs = logits.float().log_softmax(dim=1).cpu()
        rows = tokens[start : start + len(dialogues)]
        scores += [[float(row[index]) for (index,) in ids] for row, ids in zip(logprobs, rows, strict=True)]
    return scores


def _batches(
    backbone: OpenUni, images: Sequence[Sequence[Image]], questions: Sequence[str]
) -> Iterator[tuple[Tensor, list[Dialogue], int]]:
    """Yield seen images with their questions, and the index of the first, inside the inference context."""
    if len(images) != len(questions):
        raise ValueError(f"{len(questions)} questions have {len(images)} lists of images.")
    for index, pictures in enumerate(images):
        if not pictures:
            raise ValueError(f"Question {index} has no image; OpenUni is asked about images.")
    model, config = backbone.model, backbone.model.config
    size, num_tokens = config.vision.image_size_px, config.vision.grid[0] * config.vision.grid[1]
    for start in range(0, len(questions), BATCH_SIZE):
        cut = [
            [tiles(picture, size_px=size, max_tiles=config.max_tiles) for picture in pictures]
            for pictures in images[start : start + BATCH_SIZE]
        ]
        dialogues = [
            backbone.tokenizer.question(text, num_image_tokens=[len(parts) * num_tokens for parts in pictures])
            for text, pictures in zip(questions[start : start + BATCH_SIZE], cut, strict=True)
        ]
        pixels = torch.stack([tile for pictures in cut for parts in pictures for tile in parts])
        with inference(model):
            yield model.see(pixels.to(backbone.device)).flatten(0, 1), dialogues, start
