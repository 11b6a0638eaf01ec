"""POPE: is a named object in the picture? Objects that are absent are drawn at random, by popularity, or adversarially.

The same questions with the answer yes are asked in all three splits, and a picture appears in all of them, so
pictures are what is resampled. Accuracy and F1 (of the answer yes) are reported over all questions and per split, by
the protocol's own reading, and beside it by two others: `strict` takes nothing but a bare yes or no (lmms-eval), and
`official` takes everything for yes that does not deny (POPE's own script, as LLaVA and InternVL use it).

Source: RUCAIBox/POPE evaluate.py; EvolvingLMMs-Lab/lmms-eval@75571cf, tasks/pope/utils.py;
open-compass/VLMEvalKit@e8e78f0, vlmeval/dataset/utils/yorn.py.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any, ClassVar

from segros_eval.benchmarks.base import Interval, Sample, Score
from segros_eval.benchmarks.vqa.categories import SPLITS
from segros_eval.benchmarks.vqa.questions import (
    WORD,
    Decoding,
    PublishedQuestions,
    Rules,
    Verdict,
    answer_of,
    named_intervals,
    share_unparsed,
)
from segros_eval.benchmarks.vqa.yes_no import exact, first_sentence, whole_word

if TYPE_CHECKING:
    from segros_eval.statistics.bootstrap import Floats

__all__ = ["POPE", "f1_of", "outcomes_by_picture"]

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

    def aggregate(self, scores: Sequence[Score]) -> dict[str, float | None]:
        """Sum up in percent: `accuracy` and `f1` of all questions, then precision, recall and the ratio of yes.

        `<split>_accuracy` and `<split>_f1` are of one split, `strict_...` and `official_...` by another reading;
        `official_mean_f1` is the mean over the splits, which LLaVA reports. What would divide by zero is None.

        Raises:
            ValueError: If a score is of no split of POPE.
        """
        counts = {name: _counted(scores, name) for name in (self.rules, "strict", "official")}
        own = counts[self.rules]
        metrics = {name: _measure(name, own, self.rules) for name in ("accuracy", "f1", *_MEASURES)}
        for split in SPLITS:
            for name in ("accuracy", "f1"):
                metrics[f"{split}_{name}"] = _measure(name, own, self.rules, split)
        for reading in ("strict", "official"):
            for name in ("accuracy", "f1"):
                metrics[f"{reading}_{name}"] = _measure(name, counts[reading], reading)
        per_split = [_measure("f1", counts["official"], "official", split) for split in SPLITS]
        known = [value for value in per_split if value is not None]
        metrics["official_mean_f1"] = fmean(known) if len(known) == len(SPLITS) else None
        percent = {name: None if value is None else 100 * value for name, value in metrics.items()}
        return {**percent, "unparsed": share_unparsed(scores)}

    def intervals(self, scores: Sequence[Score], *, seed: int = 0) -> dict[str, Interval]:
        """Estimate 95% intervals: standard errors clustered by picture for accuracies, a bootstrap of pictures for F1.

        Args:
            scores: The same scores that `aggregate` sums up.
            seed: Seed of the resampling.
        """
        from segros_eval.statistics.bootstrap import REPLICATES, replicate_interval
        from segros_eval.statistics.clustered import bootstrap_counts, clustered_interval, group_intervals

        found: dict[str, Interval | None] = {"accuracy": clustered_interval(scores)}
        found |= {f"{split}_accuracy": one for split, one in group_intervals(scores).items()}
        metrics = self.aggregate(scores)
        estimator = f"image-clustered bootstrap, {REPLICATES} replicates"
        drawn = bootstrap_counts(outcomes_by_picture(scores, self.rules), seed=seed)
        num_pictures = len({score.cluster_id for score in scores if score.value is not None})
        for name in metrics if drawn else ():
            split, _, measure = name.rpartition("_") if name.endswith("_f1") else ("", "", name)
            if measure not in ("f1", *_MEASURES) or split not in ("", *SPLITS):
                continue
            values = _replicates(measure, drawn, self.rules, split)
            found[name] = replicate_interval(values, estimator, num_clusters=num_pictures, unit="image")
        return named_intervals(metrics, {name: one for name, one in found.items() if one is not None})


_Counts = Mapping[str, float]
"""Numbers of answers by `split/right answer/reading`, the reading being yes, no or none."""


def _outcome(score: Score, reading: str) -> str:
    answer, gold = answer_of(score) or ("", "")
    return f"{score.group}/{gold.strip().lower()}/{_READINGS[reading](answer) or 'none'}"


def _counted(scores: Sequence[Score], reading: str) -> _Counts:
    unknown = {score.group for score in scores} - set(SPLITS)
    if unknown:
        raise ValueError(f"POPE has the splits {', '.join(SPLITS)}; a score is of {min(unknown)!r}.")
    return Counter(_outcome(score, reading) for score in scores if score.value is not None)


def outcomes_by_picture(scores: Sequence[Score], reading: str) -> dict[str, Counter[str]]:
    """Return the numbers of answers of each picture, by `split/right answer/reading`; unscored ones are left out."""
    found: dict[str, Counter[str]] = {}
    for score in scores:
        if score.value is not None:
            found.setdefault(score.cluster_id, Counter())[_outcome(score, reading)] += 1
    return found


def _cell(counts: Mapping[str, Any], split: str, gold: str, found: str) -> Any:
    splits = (split,) if split else SPLITS
    return sum(counts.get(f"{one}/{gold}/{found}", 0) for one in splits)


def _parts(name: str, counts: Mapping[str, Any], reading: str, split: str) -> tuple[Any, Any]:
    """Return numerator and denominator of a measure, as numbers or as replicates.

    lmms-eval leaves unread answers out of the recall's denominator, and its ratio of yes is that of the right answers.
    """
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


def _measure(name: str, counts: _Counts, reading: str, split: str = "") -> float | None:
    top, bottom = _parts(name, counts, "lmms-eval" if reading == "strict" else reading, split)
    return top / bottom if bottom else None


def f1_of(counts: Mapping[str, Any], reading: str) -> Floats:
    """Return the F1 of each replicate, in [0, 1]; NaN where it would divide by zero.

    Args:
        counts: [R] numbers of answers by `split/right answer/reading`.
        reading: Name of the reading, e.g. `"standard"`.
    """
    return _replicates("f1", counts, reading, "")


def _replicates(name: str, drawn: Mapping[str, Floats], reading: str, split: str) -> Floats:
    import numpy as np

    top, bottom = (
        np.broadcast_to(np.asarray(part, np.float64), len(next(iter(drawn.values()))))
        for part in _parts(name, drawn, reading, split)
    )
    return np.divide(top, bottom, out=np.full(len(top), math.nan), where=bottom > 0)
