r"""Texts as Harmon reads them: templates, tokens, and where the caption stands among them.

Source: wusize/Harmon src/datasets and xtuner's PROMPT_TEMPLATE.qwen_chat (template strings)
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Encoding, Tokenizer
from torch import Tensor

from segros_train.backbones.dialogues import IGNORED, Dialogue
from segros_train.errors import PrerequisiteError
from segros_train.types import Turn

__all__ = ["HarmonTokenizer", "Prompt", "Prompts"]

USER = "<|im_start|>user\n"
ASSISTANT = "<|im_end|>\n<|im_start|>assistant\n"
END = "<|im_end|>"
TURN_SEPARATOR = "\n"
CAPTION = "Generate an image: "
NO_CAPTION = "Generate an image."


@dataclass(frozen=True)
class Prompt:
    """A tokenised prompt.

    Attributes:
        ids: L ids.
        caption: L marks, True on tokens of the caption.
    """

    ids: tuple[int, ...]
    caption: tuple[bool, ...]


@dataclass(frozen=True)
class Prompts:
    """Tokenised prompts, padded on the right.

    Attributes:
        ids: [B, L] long.
        valid: [B, L] bool, False on padding.
        caption: [B, L] bool, True on tokens of the caption.
    """

    ids: Tensor
    valid: Tensor
    caption: Tensor


class HarmonTokenizer:
    """The language model's tokenizer with Harmon's templates."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Wrap a tokenizer.

        Raises:
            PrerequisiteError: If it lacks the token that ends a turn.
        """
        self.tokenizer = tokenizer
        end = tokenizer.token_to_id(END)
        if end is None:
            raise PrerequisiteError(f"The tokenizer has no token {END!r}; take the tokenizer.json of the backbone.")
        self.end_id: int = end
        self._special = frozenset(
            index for index, token in tokenizer.get_added_tokens_decoder().items() if token.special
        )
        self.head = tuple(self.ids(USER))

    @classmethod
    def from_file(cls, path: Path) -> HarmonTokenizer:
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

    def caption(self, caption: str, *, limit: int | None = None) -> Prompt:
        """Tokenise the prompt that asks for an image of a caption.

        A token belongs to the caption when its characters overlap it: byte-pair tokens carry the blank in
        front of a word, which is the template's for the first word. Special tokens never belong to it.

        Args:
            caption: As written; outer blanks are dropped.
            limit: Largest number of ids; the rest is cut off on the right.
        """
        ids, spans = self._caption(caption)
        return Prompt(ids[:limit], tuple(span is not None for span in spans)[:limit])

    def caption_tokens(self, caption: str, *, limit: int | None = None) -> list[str]:
        """Return the text of each token that `caption` marks, in order; arguments as there."""
        _, spans = self._caption(caption)
        return [caption.strip()[span] for span in spans[:limit] if span is not None]

    def _caption(self, caption: str) -> tuple[tuple[int, ...], list[slice | None]]:
        """Return the ids of a caption's prompt and, for tokens of the caption, their place in it."""
        caption = caption.strip()
        encoding = self._encode(USER + CAPTION + caption + ASSISTANT)
        first, size = len(USER) + len(CAPTION), len(caption)
        spans = [
            slice(max(start - first, 0), min(stop - first, size))
            if start - first < size and stop > first and index not in self._special
            else None
            for index, (start, stop) in zip(encoding.ids, encoding.offsets, strict=True)
        ]
        return tuple(encoding.ids), spans

    def request(self, request: str, *, limit: int | None = None) -> Prompt:
        """Tokenise a prompt without a caption; arguments as in `caption`."""
        ids = tuple(self._encode(USER + request + ASSISTANT).ids[:limit])
        return Prompt(ids, (False,) * len(ids))

    def pad(self, prompts: Sequence[Prompt], *, device: torch.device) -> Prompts:
        """Stack prompts on a device."""
        width = max(len(prompt.ids) for prompt in prompts)
        fill = [width - len(prompt.ids) for prompt in prompts]
        ids = [[*prompt.ids, *[self.end_id] * count] for prompt, count in zip(prompts, fill, strict=True)]
        valid = [[True] * (width - count) + [False] * count for count in fill]
        caption = [[*prompt.caption, *[False] * count] for prompt, count in zip(prompts, fill, strict=True)]
        return Prompts(
            ids=torch.tensor(ids, device=device),
            valid=torch.tensor(valid, device=device),
            caption=torch.tensor(caption, device=device),
        )

    def question(self, question: str) -> Dialogue:
        """Tokenise a question about an image, up to where the answer starts."""
        return Dialogue(self.head, tuple(self.ids("\n" + question + ASSISTANT)))

    def dialogue(self, turns: Sequence[Turn], *, limit: int) -> Dialogue:
        """Tokenise a dialogue about an image with the labels of its answers.

        Every answer is supervised with the token that ends it; nothing else is.

        Args:
            turns: At least one turn.
            limit: Largest number of ids in all; the rest is cut off on the right.
        """
        ids: list[int] = []
        labels: list[int] = []
        for index, turn in enumerate(turns):
            start = "\n" if index == 0 else USER
            asked = self.ids(start + turn.question + ASSISTANT)
            answered = self.ids(turn.answer + END)
            closing = self.ids(TURN_SEPARATOR)
            ids += asked + answered + closing
            labels += [IGNORED] * len(asked) + answered + [IGNORED] * len(closing)
        kept = max(limit - len(self.head), 0)
        return Dialogue(self.head, tuple(ids[:kept]), tuple(labels[:kept]))
