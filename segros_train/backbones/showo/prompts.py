"""Texts as Show-o reads them: one sequence for every task, with a token that names it.

Ids count the tokenizer's own, then ten special tokens in upstream's order, then the codes, then the mask. One id,
`<|endoftext|>`, both starts and ends a text.

    t2i    [t2i] [bos] text [eos] [soi] codes [eoi]           padded on the left
    lm     [bos] text [eos]                                   padded on the right
    mmu    [mmu] system? [soi] image [eoi] text               padded on the right

Source: showlab/Show-o training/prompting_utils.py @ 45a5a2de
"""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer

from segros_train.backbones.common.dialogues import IGNORED, Dialogue
from segros_train.backbones.common.texts import Prompt, TextTokenizer
from segros_train.errors import PrerequisiteError
from segros_train.types import Turn

__all__ = ["END", "ShowoTokenizer"]

END = "<|endoftext|>"
SPECIAL = ("pad", "soi", "eoi", "sov", "eov", "t2i", "mmu", "t2v", "v2v", "lvg")


class ShowoTokenizer(TextTokenizer):
    """The language model's tokenizer with Show-o's special tokens and templates."""

    def __init__(self, tokenizer: Tokenizer, *, text_vocab_size: int, system_prompt: str = "") -> None:
        """Wrap a tokenizer.

        Args:
            tokenizer: Gives ids below `text_vocab_size`.
            text_vocab_size: Id of the first special token.
            system_prompt: Text in front of an image that is read.

        Raises:
            PrerequisiteError: If it lacks the token that ends a text, or has more ids than the model.
        """
        end = tokenizer.token_to_id(END)
        if end is None or tokenizer.get_vocab_size() > text_vocab_size:
            raise PrerequisiteError(
                f"The tokenizer has {tokenizer.get_vocab_size()} tokens and {END} is {end}; Show-o needs that token "
                f"and at most {text_vocab_size}. Take the tokenizer.json of the backbone."
            )
        super().__init__(tokenizer, end_id=end)
        self.special = {name: text_vocab_size + index for index, name in enumerate(SPECIAL)}
        self.system = tuple(self.ids(system_prompt)) if system_prompt else ()

    def text(self, ids: Sequence[int]) -> str:
        """Return the text of `ids` without special tokens and outer blanks."""
        return super().text([index for index in ids if index < self.special["pad"]])

    def _asked(self, text: str, limit: int) -> tuple[list[int], list[slice | None]]:
        """Return the ids of a request and, of tokens of its text that are not special, their place in it."""
        encoding = self._encode(text)
        head = [self.special["t2i"]] if encoding.ids[:1] == [self.end_id] else [self.special["t2i"], self.end_id]
        spans = [
            None if index in self._special or index == self.end_id else slice(*span)
            for index, span in zip(encoding.ids, encoding.offsets, strict=True)
        ]
        cut = slice(limit - 1 - len(head))
        return [*head, *encoding.ids[cut], self.end_id], [*[None] * len(head), *spans[cut], None]

    def _started(self, text: str) -> list[int]:
        ids = self.ids(text)
        return ids if ids[:1] == [self.end_id] else [self.end_id, *ids]

    def request(self, text: str, *, limit: int) -> list[int]:
        """Return [task] [bos] text [eos] for drawing; a text too long is cut before its end token.

        Args:
            text: As written; empty for the unconditional prompt.
            limit: Largest number of ids, the task token included.
        """
        return self._asked(text, limit)[0]

    def caption(self, caption: str, *, limit: int) -> Prompt:
        """Tokenise a caption as `request` does, with its tokens marked."""
        ids, spans = self._asked(caption, limit)
        return Prompt(tuple(ids), tuple(span is not None for span in spans))

    def caption_tokens(self, caption: str, *, limit: int) -> list[str]:
        """Return the text of each token that `caption` marks, in order."""
        return [caption[span].strip() for span in self._asked(caption, limit)[1] if span is not None]

    def sentence(self, text: str, *, limit: int) -> list[int]:
        """Return [bos] text [eos] for language modelling, cut on the right."""
        return [*self._started(text), self.end_id][:limit]

    def reading(self, text: str, *, limit: int) -> list[int]:
        """Return [bos] text [eos] to stand behind the codes of an image; a text too long keeps its end token."""
        ids = [*self._started(text), self.end_id]
        return ids if len(ids) <= limit else [*ids[: limit - 1], self.end_id]

    def _head(self, *, tower: bool) -> tuple[int, ...]:
        return (self.special["mmu"], *(self.system if tower else ()), self.special["soi"])

    def question(self, question: str, *, tower: bool) -> Dialogue:
        """Tokenise a question about an image, up to where the answer starts.

        Args:
            question: As the benchmark writes it.
            tower: Whether a vision tower reads the image; codes have another template.

        Source: showlab/Show-o inference_mmu.py @ 45a5a2de
        """
        eoi = self.special["eoi"]
        if tower:
            return Dialogue(self._head(tower=True), (eoi, *self.ids(f"USER: {question} ASSISTANT:")))
        return Dialogue(self._head(tower=False), (eoi, self.end_id, *self.ids(f"USER: \n{question} ASSISTANT:")))

    def dialogue(self, turns: Sequence[Turn], *, tower: bool, limit: int) -> Dialogue:
        """Tokenise a dialogue about an image with the labels of its answers.

        Every answer is supervised with the token that ends it; nothing else is.

        Args:
            turns: At least one turn.
            tower: As in `question`.
            limit: Largest number of ids of the text; the rest is cut off on the right.

        Source: showlab/Show-o llava/llava_data_vq_unified.py @ 45a5a2de (template)
        """
        ids: list[int] = []
        labels: list[int] = []
        for turn in turns:
            asked = self.ids(f"USER: {turn.question} ASSISTANT:")
            answered = [*self.ids(f" {turn.answer}"), self.end_id]
            ids += asked + answered
            labels += [IGNORED] * len(asked) + answered
        tail = (self.special["eoi"], *ids[:limit])
        return Dialogue(self._head(tower=tower), tail, (IGNORED, *labels[:limit]))
