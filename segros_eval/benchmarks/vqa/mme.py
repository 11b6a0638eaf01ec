"""MME: two questions about each picture, one right by yes and one by no, in fourteen categories.

A picture is worth the share of its two questions answered right plus whether both are, 0 to 200 points; a category is
the mean of its pictures, and perception (ten categories) and cognition (four) are the sums of theirs. A picture with
another number of scored answers than two has no value, and neither has what it belongs to.

Source: BradyFU/Awesome-Multimodal-Large-Language-Models, MME eval_tool; EvolvingLMMs-Lab/lmms-eval@75571cf, tasks/mme.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from segros_eval.benchmarks.base import Metric, Sample, Score
from segros_eval.benchmarks.vqa.categories import COGNITION, PERCEPTION
from segros_eval.benchmarks.vqa.questions import (
    WORD,
    Decoding,
    PublishedQuestions,
    Rules,
    Verdict,
    accuracies,
    unparsed_share,
)
from segros_eval.benchmarks.vqa.yes_no import first_letters, whole_word

if TYPE_CHECKING:
    from segros_eval.statistics.tally import Floats, Tally, Totals

__all__ = ["MME"]

SUFFIX = " Please answer yes or no."

_QUESTIONS_PER_PICTURE = 2
_POINTS_PER_PICTURE = 200


@dataclass(frozen=True)
class MME(PublishedQuestions):
    """Score answers by the rules of MME.

    Attributes:
        rules: Whose prompts and whose reading of an answer.
        max_new_tokens: Largest length of an answer.
        decoding: Whether an answer is decoded, or yes and no are weighed.
        num_rows: Questions of the whole set; None takes any number.
        shapes_pictures: Pictures of each category in the embedded world.
    """

    name: ClassVar[str] = "mme"
    version: ClassVar[int] = 1

    rules: Rules = "standard"
    max_new_tokens: int = 16
    decoding: Decoding = "greedy"
    num_rows: int | None = 2374
    shapes_pictures: int = 60

    def prompt(self, record: Mapping[str, Any]) -> str:
        """Return what is asked about a record."""
        if self.rules == "vlmevalkit":
            return record["question"]
        return f"{record['question'].strip().replace(SUFFIX, '')}\n{WORD}"

    def picture_id(self, item_id: str, record: Mapping[str, Any]) -> str:
        """Return what questions about the same picture share."""
        return record["question_id"]

    def group(self, item_id: str, record: Mapping[str, Any]) -> str:
        """Return the category that a question belongs to."""
        return record["category"]

    def choices(self, record: Mapping[str, Any]) -> tuple[str, ...]:
        """Return the answers that are weighed, where they are."""
        return ("Yes", "No") if self.decoding == "logprobs" else ()

    def read(self, sample: Sample, answer: str) -> Verdict:
        """Return what the protocol makes of an answer."""
        found = whole_word(answer) if self.rules == "vlmevalkit" else first_letters(answer)
        return Verdict(found, float(found == sample.metadata["answer"].strip().lower().replace(".", "")))

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """`perception`, `cognition` and each category in points, the rest in percent.

        A category with a picture of which only one question is scored has no value, and neither has the sum it
        belongs to. A sum is over the categories that were asked.
        """
        totals, categories = [], []
        for name, members in (("perception", PERCEPTION), ("cognition", COGNITION)):
            tally = partial(_pictures, members)
            totals.append(Metric(name, tally, partial(_total, members), "points", members, "image"))
            categories += [Metric(one, tally, partial(_total, (one,)), "points", (one,), "image") for one in members]
        return (*totals, *categories, *accuracies({}), unparsed_share())


def _pictures(categories: Sequence[str], scores: Sequence[Score]) -> Tally:
    """Sum up what the pictures of some categories are worth, in [0, 1].

    Raises:
        ValueError: If a score is of no category of MME.
    """
    from segros_eval.statistics.tally import tabulate

    pictures: dict[tuple[str, str], list[float]] = {}
    for score in scores:
        if score.group not in PERCEPTION + COGNITION:
            raise ValueError(f"Item {score.item_id!r} is of category {score.group!r}, which MME does not have.")
        if score.group in categories and score.value is not None:
            pictures.setdefault((score.group, score.cluster_id), []).append(score.value)
    asked = {score.group for score in scores}.intersection(categories)
    entries = (
        (f"{category}/{picture}", (category, what), part)
        for (category, picture), values in pictures.items()
        for what, part in (("sum", _worth(values)), ("count", 1.0))
    )
    return tabulate(entries, counters=[(category, what) for category in asked for what in ("sum", "count")])


def _worth(values: Sequence[float]) -> float:
    """Return what a picture is worth; NaN where it is scored by half."""
    if len(values) != _QUESTIONS_PER_PICTURE:
        return math.nan
    return (sum(values) / len(values) + float(min(values) == 1)) / 2


def _total(categories: Sequence[str], totals: Totals) -> Floats:
    """Return the sum of the means of those categories that were asked, in points; NaN where none was."""
    from segros_eval.statistics.tally import group_mean, ratio

    means = [group_mean(totals, name) * _POINTS_PER_PICTURE for name in categories if (name, "count") in totals]
    return ratio(sum(means, 0.0), float(bool(means)))
