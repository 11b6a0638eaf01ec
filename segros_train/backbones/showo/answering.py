"""Reading an image with a text, and answering: the image-to-text half of Show-o.

The image stands behind the task token, as projected patches of the vision tower or as codes; its columns are seen by
every position, the rest is causal.

Source: showlab/Show-o inference_mmu.py, models/modeling_showo.py (mmu_generate) @ 45a5a2de
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import DynamicCache

from segros_train.backbones.common import answering
from segros_train.backbones.common.dialogues import Dialogue, embedded, lengths_of
from segros_train.backbones.showo.layout import reading_mask
from segros_train.backbones.showo.model import ShowoModel

if TYPE_CHECKING:
    from PIL.Image import Image

    from segros_train.backbones.showo.adapter import Showo

__all__ = ["greedy", "read", "reader"]


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
    sequence = embedded(dialogues, image, model.embed)
    start = len(dialogues[0].head)
    stop = start + image.shape[1]
    first, last = (0, stop + 1) if everything else (start, stop)
    mask = reading_mask(sequence.shape[1], first=first, last=last, device=image.device)
    positions = torch.arange(sequence.shape[1], device=image.device).unsqueeze(0)
    return model.hidden(sequence, positions, mask=mask, cache=cache)


def _asked(model: ShowoModel, image: Tensor, dialogues: Sequence[Dialogue], *, everything: bool) -> answering.Asked:
    def step(tokens: Tensor, positions: Tensor, valid: Tensor, cache: DynamicCache) -> Tensor:
        rows = model.embed(tokens).unsqueeze(1)
        return model.hidden(rows, positions.unsqueeze(1), mask=valid[:, None, None], cache=cache)[:, 0]

    reading = partial(read, model, image, dialogues, everything=everything)
    return answering.Asked(model.showo.config, lengths_of(dialogues, image), reading, step, model.logits)


def greedy(
    model: ShowoModel,
    image: Tensor,
    dialogues: Sequence[Dialogue],
    *,
    end_id: int,
    max_new_tokens: int,
    everything: bool,
) -> list[list[int]]:
    """Continue each dialogue about an image [B, I, D], `everything` as in `read`; see `answering.greedy`."""
    asked = _asked(model, image, dialogues, everything=everything)
    return answering.greedy(asked, end_id=end_id, max_new_tokens=max_new_tokens)


def reader(backbone: Showo) -> answering.Reader:
    """Return how Show-o is asked about images; a choice follows a blank."""
    tokenizer, tower = backbone.tokenizer, backbone.has_tower
    prepare, rng = backbone.image_transform("understanding"), torch.Generator()

    def ask(images: Sequence[Sequence[Image]], questions: Sequence[str]) -> answering.Asked:
        pixels = torch.stack([prepare(picture, rng) for (picture,) in images])
        dialogues = [tokenizer.question(text, tower=tower) for text in questions]
        image = backbone.image_inputs(pixels.to(backbone.device))
        return _asked(backbone.model, image, dialogues, everything=not tower)

    return answering.Reader(
        backbone.model,
        check=partial(answering.check_one_image_each, "Show-o"),
        ask=ask,
        first_ids=lambda choice: tokenizer.ids(f" {choice}")[:1] if choice.strip() else (),
        tokenizer=tokenizer,
    )
