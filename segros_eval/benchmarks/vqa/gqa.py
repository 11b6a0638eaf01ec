"""GQA: a question about a scene, answered in a word; right where the word is the expected one.

Case and ASCII punctuation do not count, spaces within do. `strict_lower` compares without removing punctuation.

Source: EvolvingLMMs-Lab/lmms-eval@75571cf, tasks/gqa and api/metrics.py (exact_match with ignore_case and
ignore_punctuation); open-compass/VLMEvalKit@e8e78f0, vlmeval/dataset/image_vqa.py.
"""

from __future__ import annotations

import string
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from segros_eval.benchmarks.base import Metric, Sample, Score
from segros_eval.benchmarks.vqa.questions import (
    WORD,
    PublishedQuestions,
    Rules,
    Verdict,
    accuracies,
    answer_of,
    unparsed_share,
)

__all__ = ["GQA", "normalised"]

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalised(text: str) -> str:
    """Return a text in lower case without ASCII punctuation; spaces stay, also those before a removed mark."""
    return text.lower().translate(_NO_PUNCTUATION)


@dataclass(frozen=True)
class GQA(PublishedQuestions):
    """Score answers by the rules of GQA.

    Attributes:
        rules: Whose comparison of answers; the prompt is the same.
        max_new_tokens: Largest length of an answer.
        num_rows: Questions of the whole set; None takes any number.
        shapes_pictures: Pictures in the embedded world, with three questions each.
    """

    name: ClassVar[str] = "gqa"
    version: ClassVar[int] = 1

    rules: Rules = "standard"
    max_new_tokens: int = 16
    num_rows: int | None = 12_578
    shapes_pictures: int = 300

    def prompt(self, record: Mapping[str, Any]) -> str:
        """Return what is asked about a record."""
        return f"{record['question']}\n{WORD}"

    def picture_id(self, item_id: str, record: Mapping[str, Any]) -> str:
        """Return what questions about the same picture share."""
        return record["imageId"]

    def read(self, sample: Sample, answer: str) -> Verdict:
        """Return what the protocol makes of an answer."""
        gold = sample.metadata["answer"]
        if self.rules == "vlmevalkit":
            found, right = answer.strip().lower(), gold.strip().lower()
        else:
            found, right = normalised(answer.strip()), normalised(gold)
        return Verdict(found or None, float(found == right))

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """`accuracy`, and `strict_lower`, which minds punctuation; in percent."""
        from segros_eval.statistics.tally import item_mean, item_tally

        return (*accuracies({}), item_mean("strict_lower", item_tally(_strict)), unparsed_share())


def _strict(score: Score) -> float | None:
    given = answer_of(score)
    return None if given is None else 100.0 * (given[0].strip().lower() == given[1].strip().lower())
