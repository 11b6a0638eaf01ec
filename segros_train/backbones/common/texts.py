"""Texts as ids: the tokenizer that every family puts its templates on, and prompts with their captions marked."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from tokenizers import Encoding, Tokenizer
from torch import Tensor

from segros_train.backbones.common.dialogues import PADDING_ID
from segros_train.errors import PrerequisiteError

__all__ = ["Prompt", "Prompts", "TextTokenizer"]


@dataclass(frozen=True)
class Prompt:
    """A tokenised prompt.

    A token belongs to the caption when its characters overlap it: byte-pair tokens carry the blank in front of a word,
    which is the template's for the first word. Special tokens never belong to it.

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


class TextTokenizer:
    """A language model's tokenizer, on which families put their templates."""

    def __init__(self, tokenizer: Tokenizer, *, end_id: int, padding_id: int = PADDING_ID) -> None:
        """Wrap a tokenizer.

        Args:
            tokenizer: Gives the ids.
            end_id: Id that ends an answer.
            padding_id: Id in places of padding.
        """
        self.tokenizer = tokenizer
        self.end_id = end_id
        self.padding_id = padding_id
        added = tokenizer.get_added_tokens_decoder()
        self._special = frozenset(index for index, token in added.items() if token.special)

    @classmethod
    def from_file(cls, path: Path, **arguments: Any) -> Self:
        """Read a `tokenizer.json`; other arguments as for the class.

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
        return cls(Tokenizer.from_str(text), **arguments)

    def ids(self, text: str) -> list[int]:
        """Return the ids of `text`, nothing added."""
        return self._encode(text).ids

    def text(self, ids: Sequence[int]) -> str:
        """Return the text of `ids` without special tokens and outer blanks."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True).strip()

    def _encode(self, text: str) -> Encoding:
        return self.tokenizer.encode(text, add_special_tokens=False)

    def _placed(self, head: str, caption: str, tail: str) -> tuple[list[int], list[slice | None]]:
        """Return the ids of a caption in its template and, for its own tokens (see `Prompt`), their place in it."""
        encoding = self._encode(head + caption + tail)
        first, size = len(head), len(caption)
        spans = [
            slice(max(start - first, 0), min(stop - first, size))
            if start - first < size and stop > first and index not in self._special
            else None
            for index, (start, stop) in zip(encoding.ids, encoding.offsets, strict=True)
        ]
        return encoding.ids, spans

    def pad(self, prompts: Sequence[Prompt], *, device: torch.device | str) -> Prompts:
        """Stack prompts on a device."""
        width = max(len(prompt.ids) for prompt in prompts)
        fill = [width - len(prompt.ids) for prompt in prompts]
        ids = [[*prompt.ids, *[self.padding_id] * count] for prompt, count in zip(prompts, fill, strict=True)]
        valid = [[True] * (width - count) + [False] * count for count in fill]
        caption = [[*prompt.caption, *[False] * count] for prompt, count in zip(prompts, fill, strict=True)]
        return Prompts(
            ids=torch.tensor(ids, dtype=torch.long, device=device),
            valid=torch.tensor(valid, dtype=torch.bool, device=device),
            caption=torch.tensor(caption, dtype=torch.bool, device=device),
        )
