"""Reading an image with a text, and answering: the image-to-text half of Harmon.

The whole image, all cells and then the buffers, stands between the start of the user's turn and the question.
Attention is causal.

Source: wusize/Harmon scripts/image2text.py @ 4eb60876
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
from segros_train.backbones.common.recompute import residual_stream
from segros_train.backbones.harmon.model import HarmonModel
from segros_train.backbones.harmon.transforms import PadToSquare

if TYPE_CHECKING:
    from PIL.Image import Image

    from segros_train.backbones.harmon.adapter import Harmon

__all__ = ["greedy", "next_token_loss", "read", "reader"]


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
    sequence = residual_stream(embedded(dialogues, image, model.llm.model.embed_tokens))
    return model.llm.model(inputs_embeds=sequence, past_key_values=cache, use_cache=cache is not None).last_hidden_state


def next_token_loss(model: HarmonModel, states: Tensor, labels: Tensor) -> Tensor:
    """Return the loss of what the language model's head says of states [B, S, D]; see `answering.next_token_loss`."""
    return answering.next_token_loss(model.llm.lm_head, states, labels)


def _asked(model: HarmonModel, image: Tensor, dialogues: Sequence[Dialogue]) -> answering.Asked:
    llm = model.llm

    def step(tokens: Tensor, positions: Tensor, valid: Tensor, cache: DynamicCache) -> Tensor:
        return llm.model(
            inputs_embeds=llm.model.embed_tokens(tokens).unsqueeze(1),
            attention_mask=valid[:, None, None],
            position_ids=positions.unsqueeze(1),
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state[:, 0]

    lengths = lengths_of(dialogues, image)
    return answering.Asked(llm.config, lengths, partial(read, model, image, dialogues), step, llm.lm_head)


def greedy(
    model: HarmonModel, image: Tensor, dialogues: Sequence[Dialogue], *, end_id: int, max_new_tokens: int
) -> list[list[int]]:
    """Continue each dialogue about encodings of whole images [B, I, D]; see `answering.greedy`."""
    return answering.greedy(_asked(model, image, dialogues), end_id=end_id, max_new_tokens=max_new_tokens)


def reader(backbone: Harmon) -> answering.Reader:
    """Return how Harmon is asked about images."""
    model, tokenizer = backbone.model, backbone.tokenizer
    prepare = PadToSquare(backbone.card.image_size_px)

    def ask(images: Sequence[Sequence[Image]], questions: Sequence[str]) -> answering.Asked:
        pixels = torch.stack([prepare(picture) for (picture,) in images])
        latents = model.encode_images(pixels.to(backbone.device))
        return _asked(model, model.whole_image(latents), [tokenizer.question(text) for text in questions])

    return answering.Reader(
        model,
        check=partial(answering.check_one_image_each, "Harmon"),
        ask=ask,
        first_ids=lambda choice: tokenizer.ids(choice)[:1],
        tokenizer=tokenizer,
    )
