"""Reading images with a text, and answering: the image-to-text half, which is InternVL's own and frozen.

An image to be understood is cut into tiles of the vision tower's size, as many as its shape asks for, and a small
copy of the whole follows them.

Source: OpenGVLab/InternVL3 model card (tiling, templates); wusize/OpenUni src/models @ d1703fc
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from PIL import Image as Images
from torch import Tensor
from transformers import DynamicCache

from segros_train.backbones.common import answering
from segros_train.backbones.common.dialogues import IGNORED, PADDING_ID
from segros_train.backbones.common.images import to_pixels
from segros_train.backbones.openuni.model import OpenUniModel
from segros_train.backbones.openuni.prompts import Dialogue

if TYPE_CHECKING:
    from PIL.Image import Image

    from segros_train.backbones.openuni.adapter import OpenUni

__all__ = ["answer", "choice_logprobs", "greedy", "next_token_loss", "read_dialogues", "tiles"]


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
    width = max(len(dialogue.ids) for dialogue in dialogues)
    padded = [[*dialogue.ids, *[PADDING_ID] * (width - len(dialogue.ids))] for dialogue in dialogues]
    ids = torch.tensor(padded, device=seen.device)
    rows = model.embed_ids(ids)
    rows = rows.masked_scatter((ids == image_id).unsqueeze(-1), seen.to(rows.dtype))
    return model.language(inputs_embeds=rows, past_key_values=cache, use_cache=cache is not None).last_hidden_state


def next_token_loss(model: OpenUniModel, seen: Tensor, dialogues: Sequence[Dialogue], *, image_id: int) -> Tensor:
    """Return the loss of dialogues' labels, a scalar; arguments as `read_dialogues`, see `answering.next_token_loss`.

    Raises:
        ValueError: If nothing is supervised.
    """
    states = read_dialogues(model, seen, dialogues, image_id=image_id)
    width = states.shape[1]
    labels = [[*dialogue.labels, *[IGNORED] * (width - len(dialogue.labels))] for dialogue in dialogues]
    return answering.next_token_loss(model.lmm.lm_head, states, torch.tensor(labels, device=states.device))


def _asked(model: OpenUniModel, seen: Tensor, dialogues: Sequence[Dialogue], image_id: int) -> answering.Asked:
    def step(tokens: Tensor, positions: Tensor, valid: Tensor, cache: DynamicCache) -> Tensor:
        return model.language(
            inputs_embeds=model.embed_ids(tokens).unsqueeze(1),
            attention_mask=valid.long(),
            position_ids=positions.unsqueeze(1),
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state[:, 0]

    lengths = torch.tensor([len(dialogue.ids) for dialogue in dialogues], device=seen.device)
    reading = partial(read_dialogues, model, seen, dialogues, image_id=image_id)
    return answering.Asked(model.language.config, lengths, reading, step, model.lmm.lm_head)


def greedy(
    model: OpenUniModel,
    seen: Tensor,
    dialogues: Sequence[Dialogue],
    *,
    image_id: int,
    end_id: int,
    max_new_tokens: int,
) -> list[list[int]]:
    """Continue each dialogue; what is read as in `read_dialogues`, see `answering.greedy`."""
    return answering.greedy(_asked(model, seen, dialogues, image_id), end_id=end_id, max_new_tokens=max_new_tokens)


def _check(images: Sequence[Sequence[Image]]) -> None:
    for index, pictures in enumerate(images):
        if not pictures:
            raise ValueError(f"Question {index} has no image; OpenUni is asked about images.")


def _reader(backbone: OpenUni) -> answering.Reader:
    model, tokenizer, config = backbone.model, backbone.tokenizer, backbone.model.config
    size, num_tokens = config.vision.image_size_px, config.vision.grid[0] * config.vision.grid[1]

    def ask(images: Sequence[Sequence[Image]], questions: Sequence[str]) -> answering.Asked:
        cut = [
            [tiles(picture, size_px=size, max_tiles=config.max_tiles) for picture in pictures] for pictures in images
        ]
        dialogues = [
            tokenizer.question(text, num_image_tokens=[len(parts) * num_tokens for parts in pictures])
            for text, pictures in zip(questions, cut, strict=True)
        ]
        pixels = torch.stack([tile for pictures in cut for parts in pictures for tile in parts])
        return _asked(model, model.see(pixels.to(backbone.device)).flatten(0, 1), dialogues, tokenizer.image_id)

    return answering.Reader(
        model,
        check=_check,
        ask=ask,
        first_ids=lambda choice: tokenizer.ids(choice)[:1],
        tokenizer=tokenizer,
    )


def answer(
    backbone: OpenUni, images: Sequence[Sequence[Image]], questions: Sequence[str], *, max_new_tokens: int
) -> list[str]:
    """Answer each question about its images; see `answering.answer`."""
    return answering.answer(_reader(backbone), images, questions, max_new_tokens=max_new_tokens)


def choice_logprobs(
    backbone: OpenUni,
    images: Sequence[Sequence[Image]],
    questions: Sequence[str],
    choices: Sequence[Sequence[str]],
) -> list[list[float]]:
    """Score the first token of each choice; see `answering.choice_logprobs`."""
    return answering.choice_logprobs(_reader(backbone), images, questions, choices)
