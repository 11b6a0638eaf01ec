"""MME: two questions about each picture, one right by yes and one by no, in fourteen categories.

A picture is worth the share of its two questions answered right plus whether both are, 0 to 200 points; a category is
the mean of its pictures, and perception (ten categories) and cognition (four) are the sums of theirs. A picture with
another number of scored answers than two has no value, and neither has what it belongs to.

Source: BradyFU/Awesome-Multimodal-Large-Language-Models, MME eval_tool; EvolvingLMMs-Lab/lmms-eval@75571cf, tasks/mme.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from segros_eval.benchmarks.base import Interval, Sample, Score
from segros_eval.benchmarks.vqa.categories import COGNITION, PERCEPTION
from segros_eval.benchmarks.vqa.questions import (
    WORD,
    Decoding,
    PublishedQuestions,
    Rules,
    Verdict,
    mean_percent,
    named_intervals,
    share_unparsed,
)
from segros_eval.benchmarks.vqa.yes_no import first_letters, whole_word

__all__ = ["MME", "picture_scores"]

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

    def aggregate(self, scores: Sequence[Score]) -> dict[str, float | None]:
        """Sum up: `perception`, `cognition` and each category in points, the rest in percent.

        A category with a picture of which only one question is scored has no value, and neither has the sum it
        belongs to. A sum is over the categories that were asked.

        Raises:
            ValueError: If a score is of no category of MME.
        """
        pictures = _pictures(scores)
        points = {name: _points(pictures[name]) if name in pictures else None for name in (*PERCEPTION, *COGNITION)}
        return {
            "perception": _total(points, pictures, PERCEPTION),
            "cognition": _total(points, pictures, COGNITION),
            **points,
            "accuracy": mean_percent(score.value for score in scores),
            "unparsed": share_unparsed(scores),
        }

    def intervals(self, scores: Sequence[Score], *, seed: int = 0) -> dict[str, Interval]:
        """Estimate 95% intervals: pictures are resampled within their categories; accuracy has its standard error.

        Args:
            scores: The same scores that `aggregate` sums up.
            seed: Seed of the resampling.
        """
        from segros_eval.statistics.bootstrap import bootstrap_intervals, macro_mean
        from segros_eval.statistics.clustered import clustered_interval, scaled

        metrics = self.aggregate(scores)
        pictures = _pictures(scores)
        found: dict[str, Interval] = {}
        for total, names in (("perception", PERCEPTION), ("cognition", COGNITION)):
            asked = [name for name in names if name in pictures]
            units = picture_scores(scores, total)
            drawn = bootstrap_intervals(units, {total: macro_mean}, seed=seed, unit="image")
            percent = _POINTS_PER_PICTURE / 100
            factors = {name: percent * (len(asked) if name == total else 1) for name in drawn}
            # Where every picture is worth the same there is nothing to resample, which is not certainty.
            found |= {name: scaled(one, factors[name]) for name, one in drawn.items() if one.low < one.high}
        accuracy = clustered_interval(scores)
        return named_intervals(metrics, found | ({"accuracy": accuracy} if accuracy else {}))


_Answers = list[float | None]


def _pictures(scores: Sequence[Score]) -> dict[str, dict[str, _Answers]]:
    """Return the values of each picture's questions, by category and picture."""
    found: dict[str, dict[str, _Answers]] = {}
    for score in scores:
        if score.group not in PERCEPTION + COGNITION:
            raise ValueError(f"Item {score.item_id!r} is of category {score.group!r}, which MME does not have.")
        found.setdefault(score.group, {}).setdefault(score.cluster_id, []).append(score.value)
    return found


def _scored(pictures: Mapping[str, _Answers]) -> dict[str, list[float]]:
    """Return the pictures with an answer, with the values that are known."""
    known = {name: [value for value in values if value is not None] for name, values in pictures.items()}
    return {name: values for name, values in known.items() if values}


def _points(pictures: Mapping[str, _Answers]) -> float | None:
    """Return a category's mean in points; None where nothing is scored, or a picture is scored by half."""
    scored = _scored(pictures)
    if not scored or any(len(values) != _QUESTIONS_PER_PICTURE for values in scored.values()):
        return None
    return sum(map(_worth, scored.values())) / len(scored) * _POINTS_PER_PICTURE


def _worth(values: Sequence[float]) -> float:
    """Return what a picture is worth, in [0, 1]."""
    return (sum(values) / len(values) + float(min(values) == 1)) / 2


def _total(points: Mapping[str, float | None], pictures: Mapping[str, Any], names: Sequence[str]) -> float | None:
    asked = [points[name] for name in names if name in pictures]
    known = [value for value in asked if value is not None]
    return sum(known) if known and len(known) == len(asked) else None


def picture_scores(scores: Sequence[Score], total: str) -> list[Score]:
    """Return a score per picture of one of the sums' categories: its worth in [0, 1].

    Args:
        scores: Scores of questions.
        total: `"perception"` or `"cognition"`.
    """
    names = PERCEPTION if total == "perception" else COGNITION
    pictures = _pictures(scores)
    return [unit for name in names if name in pictures for unit in _units(name, pictures[name])]


def _units(category: str, pictures: Mapping[str, _Answers]) -> list[Score]:
    """Return a score per picture with a value."""
    return [
        Score(f"{category}/{name}", f"{category}/{name}", None, None, "scored", _worth(values), group=category)
        for name, values in _scored(pictures).items()
        if len(values) == _QUESTIONS_PER_PICTURE
    ]
