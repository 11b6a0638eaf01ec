"""SEED-Bench, the part about pictures: a question with four options, in nine dimensions.

The first character of an answer is compared with the right letter, in any case; an answer that starts with anything
but A to D cannot be read and is wrong. `robust` reads the letter anywhere in the answer by VLMEvalKit's rule.

Source: AILab-CVC/SEED-Bench (version 1); EvolvingLMMs-Lab/lmms-eval@75571cf, tasks/seedbench/utils.py;
open-compass/VLMEvalKit@e8e78f0, vlmeval/utils/matching_util.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from segros_eval.benchmarks.base import Metric, Sample, Score
from segros_eval.benchmarks.vqa.categories import DIMENSIONS
from segros_eval.benchmarks.vqa.choices import first_character, infer_choice
from segros_eval.benchmarks.vqa.questions import (
    LETTER,
    Decoding,
    PublishedQuestions,
    Rules,
    Verdict,
    accuracies,
    unparsed_share,
    vlmevalkit_choice_prompt,
)

__all__ = ["SEED"]

_LETTERS = ("A", "B", "C", "D")


def four_options(record: Mapping[str, Any]) -> dict[str, str]:
    """Return the four options of a record by letter."""
    return {letter: str(record[f"choice_{letter.lower()}"]) for letter in _LETTERS}


@dataclass(frozen=True)
class SEED(PublishedQuestions):
    """Score answers by the rules of SEED-Bench.

    Attributes:
        rules: Whose prompts and whose reading of an answer.
        max_new_tokens: Largest length of an answer.
        decoding: Whether an answer is decoded, or the four letters are weighed.
        num_rows: Questions about pictures of the whole set; None takes any number.
        shapes_pictures: Pictures in the embedded world, with three questions each.
    """

    name: ClassVar[str] = "seed"
    version: ClassVar[int] = 1

    rules: Rules = "standard"
    max_new_tokens: int = 16
    decoding: Decoding = "greedy"
    num_rows: int | None = 14_232
    shapes_pictures: int = 400

    def prompt(self, record: Mapping[str, Any]) -> str:
        """Return what is asked about a record."""
        options = four_options(record)
        if self.rules == "vlmevalkit":
            return vlmevalkit_choice_prompt(record["question"], options)
        listed = "\n".join(f"{letter}. {text}" for letter, text in options.items())
        return f"{record['question']}\n{listed}\n{LETTER}"

    def picture_id(self, item_id: str, record: Mapping[str, Any]) -> str:
        """Return what questions about the same picture share."""
        return str(record["data_id"])

    def group(self, item_id: str, record: Mapping[str, Any]) -> str:
        """Return the category that a question belongs to."""
        return DIMENSIONS[int(record["question_type_id"])]

    def choices(self, record: Mapping[str, Any]) -> tuple[str, ...]:
        """Return the answers that are weighed, where they are."""
        return _LETTERS if self.decoding == "logprobs" else ()

    def read(self, sample: Sample, answer: str) -> Verdict:
        """Return what the protocol makes of an answer."""
        gold = sample.metadata["answer"]
        inferred = infer_choice(answer, four_options(sample.metadata))
        letter = inferred if self.rules == "vlmevalkit" else first_character(answer).upper()
        found = letter if letter in _LETTERS else None
        return Verdict(found, float(found == gold), {"robust": inferred})

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """`accuracy` over all questions, each dimension, `robust` by the other reading; in percent."""
        from segros_eval.statistics.tally import item_mean, item_tally

        of_all = accuracies({name: (name,) for name in DIMENSIONS.values()})
        return (*of_all, item_mean("robust", item_tally(_robust)), unparsed_share())


def _robust(score: Score) -> float | None:
    return None if score.value is None else 100.0 * (score.raw["robust"] == score.raw["gold"])
