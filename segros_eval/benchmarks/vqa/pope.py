"""POPE: is a named object in the picture? Objects that are absent are drawn at random, by popularity, or adversarially.

The same questions with the answer yes are asked in all three splits, and a picture appears in all of them, so
pictures are what is resampled. Accuracy and F1 (of the answer yes) are reported over all questions and per split, by
the protocol's own reading, and beside it by two others: `strict` takes nothing but a bare yes or no (lmms-eval), and
`official` takes everything for yes that does not deny (POPE's own script, as LLaVA and InternVL use it).

Source: RUCAIBox/POPE evaluate.py; EvolvingLMMs-Lab/lmms-eval@75571cf, tasks/pope/utils.py;
open-compass/VLMEvalKit@e8e78f0, vlmeval/dataset/utils/yorn.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import TYPE_CHECKING, Any, ClassVar

from segros_eval.benchmarks.base import Metric, Sample, Score
from segros_eval.benchmarks.vqa.categories import SPLITS
from segros_eval.benchmarks.vqa.questions import (
    WORD,
    Decoding,
    PublishedQuestions,
    Rules,
    Verdict,
    answer_of,
    unparsed_share,
)
from segros_eval.benchmarks.vqa.yes_no import exact, first_sentence, whole_word

if TYPE_CHECKING:
    from segros_eval.statistics.tally import Floats, Tally, Totals

__all__ = ["POPE"]

_READINGS: Mapping[str, Callable[[str], str | None]] = {
    "strict": exact,
    "official": first_sentence,
    "standard": whole_word,
    "lmms-eval": exact,
    "vlmevalkit": whole_word,
}
_MEASURES = ("precision", "recall", "yes_ratio")


@dataclass(frozen=True)
class POPE(PublishedQuestions):
    """Score answers by the rules of POPE.

    Attributes:
        rules: Whose prompts and whose reading of an answer.
        max_new_tokens: Largest length of an answer.
        decoding: Whether an answer is decoded, or yes and no are weighed.
        num_rows: Questions of the whole set; None takes any number.
        shapes_pictures: Pictures in the embedded world, with twelve questions each.
    """

    name: ClassVar[str] = "pope"
    version: ClassVar[int] = 1

    rules: Rules = "standard"
    max_new_tokens: int = 128
    decoding: Decoding = "greedy"
    num_rows: int | None = 9000
    shapes_pictures: int = 150

    def prompt(self, record: Mapping[str, Any]) -> str:
        """Return what is asked about a record."""
        return record["question"] if self.rules == "vlmevalkit" else f"{record['question'].strip()}\n{WORD}"

    def picture_id(self, item_id: str, record: Mapping[str, Any]) -> str:
        """Return what questions about the same picture share."""
        return record["image_source"]

    def group(self, item_id: str, record: Mapping[str, Any]) -> str:
        """Return the category that a question belongs to."""
        return record["category"]

    def choices(self, record: Mapping[str, Any]) -> tuple[str, ...]:
        """Return the answers that are weighed, where they are."""
        return ("Yes", "No") if self.decoding == "logprobs" else ()

    def read(self, sample: Sample, answer: str) -> Verdict:
        """Return what the protocol makes of an answer."""
        found = _READINGS[self.rules](answer)
        return Verdict(found, float(found == sample.metadata["answer"].strip().lower()))

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """`accuracy` and `f1` of all questions, then precision, recall and the ratio of yes; in percent.

        `<split>_accuracy` and `<split>_f1` are of one split, `strict_...` and `official_...` by another reading;
        `official_mean_f1` is the mean over the splits, which LLaVA reports. What would divide by zero has no value.
        """
        own, strict, official = (partial(_answers, reading) for reading in (self.rules, "strict", "official"))
        of_all = [self._metric(name, own) for name in ("accuracy", "f1", *_MEASURES)]
        of_splits = [self._metric(name, own, split) for split in SPLITS for name in ("accuracy", "f1")]
        others = [
            Metric(f"{reading}_{name}", tally, partial(_measure, name, reading))
            for reading, tally in (("strict", strict), ("official", official))
            for name in ("accuracy", "f1")
        ]
        mean = Metric("official_mean_f1", official, _mean_f1)
        return (*of_all, *of_splits, *others, mean, unparsed_share())

    def _metric(self, measure: str, tally: Callable[[Sequence[Score]], Tally], split: str = "") -> Metric:
        return Metric(
            f"{split}_{measure}" if split else measure,
            tally,
            partial(_measure, measure, self.rules, split=split),
            groups=(split,) if split else (),
            clusters="image",
            interval="standard error" if measure == "accuracy" else "bootstrap",
        )


def _answers(reading: str, scores: Sequence[Score]) -> Tally:
    """Count the answers about each picture, by split and by `right answer/reading`: yes, no or none.

    Raises:
        ValueError: If a score is of no split of POPE.
    """
    from segros_eval.statistics.tally import tabulate

    unknown = {score.group for score in scores} - set(SPLITS)
    if unknown:
        raise ValueError(f"POPE has the splits {', '.join(SPLITS)}; a score is of {min(unknown)!r}.")
    given = ((score, answer_of(score)) for score in scores)
    return tabulate(
        (score.cluster_id, (score.group, f"{one[1].strip().lower()}/{_READINGS[reading](one[0]) or 'none'}"), 1.0)
        for score, one in given
        if one is not None
    )


def _cell(totals: Totals, split: str, gold: str, found: str) -> Any:
    splits = (split,) if split else SPLITS
    return sum(totals.get((one, f"{gold}/{found}"), 0.0) for one in splits)


def _measure(name: str, reading: str, totals: Totals, *, split: str = "") -> Floats:
    """Return a measure in percent, [R].

    lmms-eval leaves unread answers out of the recall's denominator, and its ratio of yes is that of the right answers.
    """
    from segros_eval.statistics.tally import ratio

    top, bottom = _parts(name, totals, "lmms-eval" if reading == "strict" else reading, split)
    return 100 * ratio(top, bottom)


def _mean_f1(totals: Totals) -> Floats:
    import numpy as np

    shares = [_measure("f1", "official", totals, split=split) / 100 for split in SPLITS]
    return 100 * np.array([fmean(values) for values in zip(*shares, strict=True)])


def _parts(name: str, counts: Totals, reading: str, split: str) -> tuple[Any, Any]:
    right, false_yes = _cell(counts, split, "yes", "yes"), _cell(counts, split, "no", "yes")
    said_no, true_no = _cell(counts, split, "yes", "no"), _cell(counts, split, "no", "no")
    unread = _cell(counts, split, "yes", "none")
    positives = right + said_no + unread
    everything = positives + false_yes + true_no + _cell(counts, split, "no", "none")
    missed = said_no if reading == "lmms-eval" else said_no + unread
    match name:
        case "accuracy":
            return right + true_no, everything
        case "precision":
            return right, right + false_yes
        case "recall":
            return right, right + missed
        case "f1":
            return 2 * right, 2 * right + false_yes + missed
        case _:
            return (positives if reading == "lmms-eval" else right + false_yes), everything
