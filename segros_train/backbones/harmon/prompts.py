r"""Texts as Harmon reads them: templates, tokens, and where the caption stands among them.

Source: wusize/Harmon src/datasets and xtuner's PROMPT_TEMPLATE.qwen_chat (template strings)
"""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer

from segros_train.backbones.common.dialogues import IGNORED, Dialogue
from segros_train.backbones.common.texts import Prompt, TextTokenizer
from segros_train.errors import PrerequisiteError
from segros_train.types import Turn

__all__ = ["HarmonTokenizer"]

USER = "<|im_start|>user\n"
ASSISTANT = "<|im_end|>\n<|im_start|>assistant\n"
END = "<|im_end|>"
TURN_SEPARATOR = "\n"
CAPTION = "Generate an image: "
NO_CAPTION = "Generate an image."


class HarmonTokenizer(TextTokenizer):
    """The language model's tokenizer with Harmon's templates."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Wrap a tokenizer.

        Raises:
            PrerequisiteError: If it lacks the token that ends a turn.
        """
        end = tokenizer.token_to_id(END)
        if end is None:
            raise PrerequisiteError(f"The tokenizer has no token {END!r}; take the tokenizer.json of the backbone.")
        super().__init__(tokenizer, end_id=end, padding_id=end)
        self.head = tuple(self.ids(USER))

    def caption(self, caption: str, *, limit: int | None = None) -> Prompt:
        """Tokenise the prompt that asks for an image of a caption.

        Args:
            caption: As written; outer blanks are dropped.
            limit: Largest number of ids; the rest is cut off on the right.
        """
        ids, spans = self._placed(USER + CAPTION, caption.strip(), ASSISTANT)
        return Prompt(tuple(ids[:limit]), tuple(span is not None for span in spans[:limit]))

    def caption_tokens(self, caption: str, *, limit: int | None = None) -> list[str]:
        """Return the text of each token that `caption` marks, in order; arguments as there."""
        caption = caption.strip()
        _, spans = self._placed(USER + CAPTION, caption, ASSISTANT)
        return [caption[span] for span in spans[:limit] if span is not None]

    def request(self, request: str, *, limit: int | None = None) -> Prompt:
        """Tokenise a prompt without a caption; arguments as in `caption`."""
        ids = tuple(self._encode(USER + request + ASSISTANT).ids[:limit])
        return Prompt(ids, (False,) * len(ids))

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
