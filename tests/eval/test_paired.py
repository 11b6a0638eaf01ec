"""Differences of MME's sums and POPE's F1 are paired by picture, like those of means."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from segros_eval.benchmarks.base import Result, Score
from segros_eval.benchmarks.vqa.categories import SPLITS
from segros_eval.benchmarks.vqa.mme import MME
from segros_eval.benchmarks.vqa.pope import POPE
from segros_eval.pipeline.keys import plain
from segros_eval.reporting.paired import paired_headlines

NAMES = ("count", "color", "code_reasoning")


def result(evaluator: Any, scores: Sequence[Score]) -> Result:
    metrics, provenance = evaluator.aggregate(scores), {"evaluator": plain(evaluator)}
    return Result("m", "b", "e", metrics, {}, len(scores), 0, 0, (0,), evaluator.protocol, "shapes", "k", provenance)


def mme(share: float, seed: int) -> list[Score]:
    rng = np.random.default_rng(seed)
    return [
        Score(f"{name}/{n}/{k}", f"{name}/{n}", {}, "yes", "scored", float(rng.random() < share), group=name)
        for name in NAMES
        for n in range(25)
        for k in range(2)
    ]


def pope(share: float, seed: int) -> list[Score]:
    rng = np.random.default_rng(seed)
    scores = []
    for picture in range(40):
        for split in SPLITS:
            for place in range(4):
                gold, other = ("yes", "no") if place < 2 else ("no", "yes")
                answer = gold if rng.random() < share else other
                raw, item = {"answer": answer, "gold": gold}, f"{picture}/{split}/{place}"
                scores.append(Score(item, str(picture), raw, answer, "scored", float(answer == gold), group=split))
    return scores


@pytest.mark.parametrize(
    ("evaluator", "make", "metrics"), [(MME(), mme, ("perception", "cognition")), (POPE(), pope, ("f1",))]
)
def test_the_estimate_is_the_difference_of_the_numbers_and_lies_in_its_interval(
    evaluator: Any, make: Any, metrics: tuple[str, ...]
) -> None:
    a, b = make(0.9, 1), make(0.6, 2)
    found = paired_headlines(result(evaluator, a), a, b)
    assert tuple(found) == metrics
    for name, difference in found.items():
        assert difference.estimate == pytest.approx(evaluator.aggregate(a)[name] - evaluator.aggregate(b)[name])
        interval = difference.interval
        assert interval is not None and 0 < interval.low < difference.estimate < interval.high
        assert interval.estimator == "paired image-clustered bootstrap, 10000 replicates"


@pytest.mark.parametrize(("evaluator", "make"), [(MME(), mme), (POPE(), pope)])
def test_a_run_against_itself_differs_by_nothing(evaluator: Any, make: Any) -> None:
    scores = make(0.7, 3)
    for difference in paired_headlines(result(evaluator, scores), scores, scores).values():
        assert difference.interval is not None
        assert (difference.estimate, difference.interval.low, difference.interval.high) == (0, 0, 0)


def test_pairing_makes_the_interval_of_like_runs_narrower() -> None:
    a = pope(0.7, 4)
    b = [*a[:-4], *pope(0.7, 5)[-4:]]
    paired = paired_headlines(result(POPE(), a), a, b)["f1"].interval
    alone = POPE().intervals(a)["f1"]
    assert paired is not None and paired.high - paired.low < 0.3 * (alone.high - alone.low)


def test_other_evaluators_have_no_such_number() -> None:
    scores = mme(0.5, 6)
    assert paired_headlines(result(MME(), scores), scores, []) == {}
