"""SEED-Bench, the part about pictures: a question with four options, in nine dimensions.

The first character of an answer is compared with the right letter, in any case; an answer that starts with anything
but A to D cannot be read and is wrong. `robust` reads the letter anywhere in the answer by VLMEvalKit's rule.

Source: AILab-CVC/SEED-Bench (version 1); EvolvingLMMs-Lab/lmms-eval@75571cf, tasks/seedbench/utils.py;
open-compass/VLMEvalKit@e8e78f0, vlmeval/utils/matching_util.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from segros_eval.benchmarks.base import Metric, Sample, Score, Tools, World
from segros_eval.benchmarks.vqa.categories import DIMENSIONS
from segros_eval.benchmarks.vqa.choices import first_character, infer_choice
from segros_eval.benchmarks.vqa.questions import (
    LETTER,
    Decoding,
    Rules,
    Verdict,
    accuracies,
    check_positive,
    judge,
    protocol_id,
    unparsed_share,
    vlmevalkit_choice_prompt,
)

__all__ = ["SEED"]

_LETTERS = ("A", "B", "C", "D")


def four_options(record: Mapping[str, Any]) -> dict[str, str]:
    """Return the four options of a record by letter."""
    return {letter: str(record[f"choice_{letter.lower()}"]) for letter in _LETTERS}


@dataclass(frozen=True)
class SEED:
    """Score answers by the rules of SEED-Bench.

    Attributes:
        rules: Whose prompts and whose reading of an answer.
        max_new_tokens: Largest length of an answer.
        decoding: Whether an answer is decoded, or the four letters are weighed.
        num_rows: Questions about pictures of the whole set; None takes any number.
        shapes_pictures: Pictures in the embedded world, with three questions each.
    """

    version: ClassVar[int] = 1
    """Raised when the benchmark's rules or readers change numbers."""

    rules: Rules = "standard"
    max_new_tokens: int = 16
    decoding: Decoding = "greedy"
    num_rows: int | None = 14_232
    shapes_pictures: int = 400

    def __post_init__(self) -> None:
        check_positive(self, "max_new_tokens", "num_rows", "shapes_pictures")

    @property
    def protocol(self) -> str:
        """Name, version and every departure from the default."""
        return protocol_id("seed", self)

    def prompt(self, record: Mapping[str, Any]) -> str:
        """Return what is asked about a record."""
        options = four_options(record)
        if self.rules == "vlmevalkit":
            return vlmevalkit_choice_prompt(record["question"], options)
        listed = "\n".join(f"{letter}. {text}" for letter, text in options.items())
        return f"{record['question']}\n{listed}\n{LETTER}"

    def samples(self, world: World, data: Path | None, seeds: Sequence[int]) -> Iterator[Sample]:
        """Yield every question once: an answer is decoded without chance, so seeds change nothing.

        Raises:
            PrerequisiteError: If the data is missing or damaged.
        """
        from segros_eval.benchmarks.vqa.data import question_set

        records = question_set("seed", world, data, num_rows=self.num_rows, shapes_size=self.shapes_pictures)
        for item_id, record, pictures in records:
            yield Sample(
                item_id,
                str(record["data_id"]),
                "answer",
                self.prompt(record),
                images=pictures,
                choices=_LETTERS if self.decoding == "logprobs" else (),
                metadata={**record, "group": DIMENSIONS[int(record["question_type_id"])]},
            )

    def score(self, samples: Sequence[Sample], responses: Sequence[Any], tools: Tools) -> list[Score]:
        """Judge answers: 1 where the letter read is the right one."""
        return judge(samples, responses, self._read)

    def _read(self, sample: Sample, answer: str) -> Verdict:
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
