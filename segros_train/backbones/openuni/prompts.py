r"""Texts as OpenUni reads them: templates, tokens, and where the caption stands among them.

Source: wusize/OpenUni configs/datasets (processors), src/models/openuni/internvl3_sana_hf.py @ d1703fc; InternVL's
template internvl2_5
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from tokenizers import Encoding, Tokenizer
from torch import Tensor

from segros_train.backbones.dialogues import IGNORED, PADDING_ID
from segros_train.errors import PrerequisiteError
from segros_train.types import Turn

__all__ = ["Dialogue", "OpenUniTokenizer", "Prompt", "Prompts"]

USER = "<|im_start|>user\n"
ASSISTANT = "<|im_end|>\n<|im_start|>assistant\n"
END = "<|im_end|>"
IMAGE_START, IMAGE_TOKEN, IMAGE_END = "<img>", "<IMG_CONTEXT>", "</img>"
TURN_SEPARATOR = "\n"
CAPTION = "Generate an image: "
NO_CAPTION = "Generate an image."
SYSTEM = "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"


@dataclass(frozen=True)
class Prompt:
    """A tokenised prompt that ends where the queries follow.

    Attributes:
        ids: S ids; visual embeddings go where the image token stands.
        caption: S marks, True on tokens of the caption.
    """

    ids: tuple[int, ...]
    caption: tuple[bool, ...]


@dataclass(frozen=True)
class Prompts:
    """Tokenised prompts, padded on the right.

    Attributes:
        ids: [B, S] long.
        valid: [B, S] bool, False on padding.
        caption: [B, S] bool, True on tokens of the caption.
    """

    ids: Tensor
    valid: Tensor
    caption: Tensor


@dataclass(frozen=True)
class Dialogue:
    """A dialogue about images as ids.

    Attributes:
        ids: Ids; visual embeddings go where the image token stands.
        labels: One per id: the id where it is an answer's, else -100.
    """

    ids: tuple[int, ...]
    labels: tuple[int, ...]


class OpenUniTokenizer:
    """The language model's tokenizer with OpenUni's templates."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Wrap a tokenizer.

        Raises:
            PrerequisiteError: If it lacks a token of the templates.
        """
        self.tokenizer = tokenizer
        found = {token: tokenizer.token_to_id(token) for token in (END, IMAGE_START, IMAGE_TOKEN, IMAGE_END)}
        known = {token: index for token, index in found.items() if index is not None}
        if missing := sorted(found.keys() - known.keys()):
            raise PrerequisiteError(
                f"The tokenizer has no token {', '.join(missing)}; take the tokenizer.json of the InternVL3 model."
            )
        self.end_id = known[END]
        self.image_id = known[IMAGE_TOKEN]
        self._special = frozenset(
            index for index, token in tokenizer.get_added_tokens_decoder().items() if token.special
        )
        self._suffix_length = len(self.ids(ASSISTANT + IMAGE_START))

    @classmethod
    def from_file(cls, path: Path) -> OpenUniTokenizer:
        """Read a `tokenizer.json`.

        Raises:
            PrerequisiteError: If it cannot be read as one.
        """
        try:
            text = path.read_text(encoding="utf-8")
            values = json.loads(text)
        except (OSError, ValueError) as error:
            raise PrerequisiteError(f"Cannot read the tokenizer {path}: {error}. Fetch it again.") from error
        if not isinstance(values, dict) or not isinstance(values.get("model"), dict):
            raise PrerequisiteError(f"{path} is no tokenizer.json: it describes no model. Fetch it again.")
        return cls(Tokenizer.from_str(text))

    def ids(self, text: str) -> list[int]:
        """Return the ids of `text`, nothing added."""
        return self._encode(text).ids

    def text(self, ids: Sequence[int]) -> str:
        """Return the text of `ids` without special tokens and outer blanks."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True).strip()

    def _encode(self, text: str) -> Encoding:
        return self.tokenizer.encode(text, add_special_tokens=False)

    def caption(
        self,
        caption: str,
        *,
        num_hints: int = 0,
        limit: int | None = None,
        truncation: Literal["caption", "upstream"] = "caption",
    ) -> Prompt:
        """Tokenise the prompt that asks for an image of a caption.

        A token belongs to the caption when its characters overlap it: byte-pair tokens carry the blank in
        front of a word, which is the template's for the first word. Special tokens never belong to it.

        Args:
            caption: As written; outer blanks are dropped.
            num_hints: Places for visual embeddings in front of the text; 0 leaves the image's wrapper out.
            limit: Largest number of ids.
            truncation: What goes beyond the limit: the end of the caption, or whatever stands last.
        """
        ids, spans = self._caption(caption, num_hints)
        kept = self._kept(len(ids), limit, truncation)
        return Prompt(tuple(ids[i] for i in kept), tuple(spans[i] is not None for i in kept))

    def caption_tokens(
        self, caption: str, *, limit: int | None = None, truncation: Literal["caption", "upstream"] = "caption"
    ) -> list[str]:
        """Return the text of each token that `caption` marks, in order; arguments as there."""
        ids, spans = self._caption(caption, 0)
        kept = (spans[i] for i in self._kept(len(ids), limit, truncation))
        return [caption.strip()[span] for span in kept if span is not None]

    def _kept(self, length: int, limit: int | None, truncation: Literal["caption", "upstream"]) -> list[int]:
        """Return the places of a prompt that a limit leaves."""
        if limit is None or length <= limit:
            return list(range(length))
        if truncation == "upstream":
            return list(range(limit))
        end = length - self._suffix_length
        return [*range(max(limit - self._suffix_length, 0)), *range(end, length)]

    def _caption(self, caption: str, num_hints: int) -> tuple[list[int], list[slice | None]]:
        """Return the ids of a caption's prompt and, for tokens of the caption, their place in it."""
        caption = caption.strip()
        head = USER + _image(num_hints) + CAPTION
        encoding = self._encode(head + caption + ASSISTANT + IMAGE_START)
        first, size = len(head), len(caption)
        spans = [
            slice(max(start - first, 0), min(stop - first, size))
            if start - first < size and stop > first and index not in self._special
            else None
            for index, (start, stop) in zip(encoding.ids, encoding.offsets, strict=True)
        ]
        return encoding.ids, spans

    def request(self, request: str, *, num_hints: int = 0, limit: int | None = None) -> Prompt:
        """Tokenise a prompt without a caption, visual embeddings in front of its text.

        Args:
            request: The text.
            num_hints: Places for visual embeddings.
            limit: Largest number of ids; the rest is cut off on the left.
        """
        ids = self._encode(USER + _image(num_hints) + request + ASSISTANT + IMAGE_START).ids
        ids = ids if limit is None else ids[max(len(ids) - limit, 0) :]
        return Prompt(tuple(ids), (False,) * len(ids))

    def no_caption(self) -> Prompt:
        """Tokenise the prompt that asks for any image: the empty condition."""
        return self.request(NO_CAPTION)

    def pad(self, prompts: Sequence[Prompt], *, device: torch.device | str) -> Prompts:
        """Stack prompts on a device."""
        width = max(len(prompt.ids) for prompt in prompts)
        fill = [width - len(prompt.ids) for prompt in prompts]
        ids = [[*prompt.ids, *[PADDING_ID] * count] for prompt, count in zip(prompts, fill, strict=True)]
        valid = [[True] * (width - count) + [False] * count for count in fill]
        caption = [[*prompt.caption, *[False] * count] for prompt, count in zip(prompts, fill, strict=True)]
        return Prompts(
            ids=torch.tensor(ids, device=device),
            valid=torch.tensor(valid, device=device),
            caption=torch.tensor(caption, device=device),
        )

    def question(self, question: str, *, num_image_tokens: Sequence[int]) -> Dialogue:
        """Tokenise a question about images, up to where the answer starts.

        Args:
            question: The text.
            num_image_tokens: Visual embeddings of each image.
        """
        ids = self.ids(self._opening(num_image_tokens) + question + ASSISTANT)
        return Dialogue(tuple(ids), (IGNORED,) * len(ids))

    def dialogue(self, turns: Sequence[Turn], *, num_image_tokens: int, limit: int) -> Dialogue:
        """Tokenise a dialogue about an image with the labels of its answers.

        Every answer is supervised with the token that ends it and the line break after it; nothing else is.

        Args:
            turns: At least one turn.
            num_image_tokens: Visual embeddings of the image.
            limit: Largest number of ids, image tokens not counted; the rest is cut off on the right.

        Source: InternVL's training on dialogues, as the golden set has it (tokens that are supervised)
        """
        ids: list[int] = []
        labels: list[int] = []
        for index, turn in enumerate(turns):
            start = USER if index else self._opening([num_image_tokens])
            asked = self.ids(start + turn.question + ASSISTANT)
            answered = self.ids(turn.answer + END + TURN_SEPARATOR)
            ids += asked + answered
            labels += [IGNORED] * len(asked) + answered
        kept = limit + num_image_tokens
        return Dialogue(tuple(ids[:kept]), tuple(labels[:kept]))

    def _opening(self, num_image_tokens: Sequence[int]) -> str:
        return f"<|im_start|>system\n{SYSTEM}{END}\n{USER}" + "".join(_image(count) for count in num_image_tokens)


def _image(num_tokens: int) -> str:
    """Return the wrapper of an image, nothing where it has no visual embeddings."""
    return f"{IMAGE_START}{IMAGE_TOKEN * num_tokens}{IMAGE_END}\n" if num_tokens else ""
