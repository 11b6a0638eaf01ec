"""MMMU, the validation questions: thirty subjects of six disciplines, with options or with a free answer.

An option's letter, or its text, is read by MMMU's own rule, which is silent where it finds nothing. Upstream then
draws a letter; here such an answer scores 0 and is counted, and `expected_credit` says what drawing would earn on
average. A question about several pictures is asked by an explicit policy, because many models take only one.

Source: MMMU-Benchmark/MMMU eval_utils.py; EvolvingLMMs-Lab/lmms-eval@75571cf, tasks/mmmu/utils.py;
open-compass/VLMEvalKit@e8e78f0, vlmeval/dataset/image_mcq.py.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from segros_eval.benchmarks.base import Metric, Picture, Sample, Score, World
from segros_eval.benchmarks.kinds import Question
from segros_eval.benchmarks.vqa.categories import DOMAINS, options_of, subject_of
from segros_eval.benchmarks.vqa.choices import (
    guess,
    infer_choice,
    lmms_letter,
    matches_open,
    official_letter,
    open_readings,
)
from segros_eval.benchmarks.vqa.questions import (
    LETTER,
    WORD,
    Decoding,
    PublishedQuestions,
    Rules,
    Verdict,
    accuracies,
    unparsed_share,
    vlmevalkit_choice_prompt,
)

__all__ = ["MMMU", "MultiImage", "gold_answers"]

MultiImage = Literal["joined", "first", "all"]
"""Several pictures of a question: side by side in one, the first alone, or as they are."""

_DOMAIN_OF = {subject: domain for domain, subjects in DOMAINS.items() for subject in subjects}
_OTHER = "Other Answers"


def gold_answers(answer: Any) -> list[str]:
    """Return every accepted answer; the data writes several as the text of a list."""
    if isinstance(answer, str) and answer.startswith("["):
        try:
            answer = ast.literal_eval(answer)
        except (ValueError, SyntaxError):
            return [answer]
    return list(map(str, answer)) if isinstance(answer, (list, tuple)) else [str(answer)]


@dataclass(frozen=True)
class MMMU(PublishedQuestions):
    """Score answers by the rules of MMMU.

    Attributes:
        rules: Whose prompts and whose reading of an answer. Under `lmms-eval` a free answer never scores, under
            `vlmevalkit` it is matched with the right answer as option A and "Other Answers" as B: their known errors.
        max_new_tokens: Largest length of an answer.
        decoding: Whether an answer is decoded, or the letters of a question with options are weighed.
        multi_image: What is shown of a question's pictures where it has several.
        random_fallback: Whether to draw a letter where none can be read, as upstream does, seeded per question.
        num_rows: Questions of the whole set; None takes any number.
        shapes_questions: Questions of each of four subjects in the embedded world.
    """

    name: ClassVar[str] = "mmmu"
    version: ClassVar[int] = 1

    rules: Rules = "standard"
    max_new_tokens: int = 128
    decoding: Decoding = "greedy"
    multi_image: MultiImage = "joined"
    random_fallback: bool = False
    num_rows: int | None = 900
    shapes_questions: int = 60

    def prompt(self, record: Mapping[str, Any]) -> str:
        """Return what is asked about a record."""
        options = options_of(record)
        if self.rules == "vlmevalkit":
            return vlmevalkit_choice_prompt(record["question"], options)
        if record["question_type"] == "open":
            return f"{record['question']}\n\n{WORD}"
        listed = "\n".join(f"{letter}. {text}" for letter, text in options.items())
        return f"{record['question']}\n{listed}\n\n{LETTER}"

    @property
    def shapes_size(self) -> int:
        """Questions of each subject in the embedded world."""
        return self.shapes_questions

    def questions(self, world: World, data: Path | None) -> Iterator[Question]:
        """Yield each question's id, its record, and of its pictures what is shown."""
        for item_id, record, pictures in super().questions(world, data):
            yield item_id, record, self._shown(pictures)

    def group(self, item_id: str, record: Mapping[str, Any]) -> str:
        """Return the category that a question belongs to."""
        return subject_of(item_id)

    def choices(self, record: Mapping[str, Any]) -> tuple[str, ...]:
        """Return the letters that are weighed, where they are."""
        weighed = self.decoding == "logprobs" and record["question_type"] != "open"
        return tuple(options_of(record)) if weighed else ()

    def _shown(self, pictures: tuple[Path | Picture, ...]) -> tuple[Path | Picture, ...]:
        if len(pictures) == 1 or self.multi_image == "all":
            return pictures
        if self.multi_image == "first":
            return pictures[:1]
        from segros_eval.benchmarks.vqa.pictures import Joined

        return (Joined(pictures),)

    def read(self, sample: Sample, answer: str) -> Verdict:
        """Return what the protocol makes of an answer."""
        record = sample.metadata
        if record["question_type"] == "open":
            return self._read_open(record, answer.strip())
        options = options_of(record)
        letter = _LETTER_RULES[self.rules](answer.strip(), options)
        if letter is None and self.random_fallback:
            letter = guess(list(options))
        return Verdict(letter, float(letter == record["answer"]), {"num_options": len(options)})

    def _read_open(self, record: Mapping[str, Any], answer: str) -> Verdict:
        gold = gold_answers(record["answer"])
        if self.rules == "vlmevalkit":
            letter = infer_choice(answer, {"A": gold[0], "B": _OTHER})
            return Verdict(letter, float(letter == "A"))
        readings = open_readings(answer)
        right = self.rules == "standard" and matches_open(readings, gold)
        shown = [str(found) if isinstance(found, float) and not math.isfinite(found) else found for found in readings]
        return Verdict(shown, float(right))

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """`accuracy` over all questions, the credit that guesses would earn, disciplines and subjects; in percent."""
        from segros_eval.statistics.tally import item_mean, item_tally

        whole, *parts = accuracies({**DOMAINS, **{name: (name,) for name in _DOMAIN_OF}}, clusters="question")
        return (whole, item_mean("expected_credit", item_tally(_credit)), *parts, unparsed_share())


_LETTER_RULES = {"standard": official_letter, "lmms-eval": lmms_letter, "vlmevalkit": infer_choice}


def _credit(score: Score) -> float | None:
    """Return an item's value in percent, or what a letter drawn at random would earn where none could be read."""
    if score.group not in _DOMAIN_OF:
        raise ValueError(f"Item {score.item_id!r} is of subject {score.group!r}, which MMMU does not have.")
    if score.status != "unparsed" or "num_options" not in score.raw:
        return None if score.value is None else 100 * score.value
    return 100 / score.raw["num_options"]
