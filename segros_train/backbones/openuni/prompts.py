r"""Texts as OpenUni reads them: templates, tokens, and where the caption stands among them.

A prompt ends where the queries follow; visual embeddings go where its image token stands.

Source: wusize/OpenUni configs/datasets (processors), src/models/openuni/internvl3_sana_hf.py @ d1703fc; InternVL's
template internvl2_5
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from tokenizers import Tokenizer

from segros_train.backbones.common.dialogues import IGNORED
from segros_train.backbones.common.texts import Prompt, TextTokenizer
from segros_train.errors import PrerequisiteError
from segros_train.types import Turn

__all__ = ["Dialogue", "OpenUniTokenizer", "Prompt"]

USER = "<|im_start|>user\n"
ASSISTANT = "<|im_end|>\n<|im_start|>assistant\n"
END = "<|im_end|>"
IMAGE_START, IMAGE_TOKEN, IMAGE_END = "<img>", "<IMG_CONTEXT>", "</img>"
TURN_SEPARATOR = "\n"
CAPTION = "Generate an image: "
NO_CAPTION = "Generate an image."
SYSTEM = "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"


@dataclass(frozen=True)
class Dialogue:
    """A dialogue about images as ids.

    Attributes:
        ids: Ids; visual embeddings go where the image token stands.
        labels: One per id: the id where it is an answer's, else -100.
    """

    ids: tuple[int, ...]
    labels: tuple[int, ...]


class OpenUniTokenizer(TextTokenizer):
    """The language model's tokenizer with OpenUni's templates."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Wrap a tokenizer.

        Raises:
            PrerequisiteError: If it lacks a token of the templates.
        """
        found = {token: tokenizer.token_to_id(token) for token in (END, IMAGE_START, IMAGE_TOKEN, IMAGE_END)}
        known = {token: index for token, index in found.items() if index is not None}
        if missing := sorted(found.keys() - known.keys()):
            raise PrerequisiteError(
                f"The tokenizer has no token {', '.join(missing)}; take the tokenizer.json of the InternVL3 model."
            )
        super().__init__(tokenizer, end_id=known[END])
        self.image_id = known[IMAGE_TOKEN]
        self._suffix_length = len(self.ids(ASSISTANT + IMAGE_START))

    def caption(
        self,
        caption: str,
        *,
        num_hints: int = 0,
        limit: int | None = None,
        truncation: Literal["caption", "upstream"] = "caption",
    ) -> Prompt:
        """Tokenise the prompt that asks for an image of a caption.

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
        return self._placed(USER + _image(num_hints) + CAPTION, caption.strip(), ASSISTANT + IMAGE_START)

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
