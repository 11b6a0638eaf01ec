"""Differences of two runs are of the benchmark's own number, paired by what its items share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from segros_eval.benchmarks.base import Score
from segros_eval.benchmarks.compbench.benchmark import CompBench
from segros_eval.benchmarks.compbench.rules import CATEGORIES
from segros_eval.benchmarks.vqa.categories import SPLITS
from segros_eval.benchmarks.vqa.mme import MME
from segros_eval.benchmarks.vqa.pope import POPE
from segros_eval.statistics.bootstrap import interval_estimates, point_estimates
from segros_eval.statistics.paired import paired_differences

NAMES = ("count", "color", "code_reasoning")


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


def compbench(share: float, seed: int) -> list[Score]:
    """Return marks of photographs, where prompts of the complex category are judged in two of its three groups."""
    rng = np.random.default_rng(seed)
    rows = [(name, f"{name} {n}") for name in CATEGORIES[:-1] for n in range(4 * len(name))]
    rows += [
        (f"complex_{group}", f"complex {n}") for n in range(60) for group in ("general", ("action", "spatial")[n % 2])
    ]
    marks = np.clip(100 * (share + 0.2 * rng.standard_normal(len(rows))), 0, 100)
    return [
        Score(f"{group}/{prompt}", prompt, {}, float(mark), "scored", float(mark) / 100, group=group)
        for (group, prompt), mark in zip(rows, marks, strict=True)
    ]


CASES = [
    (MME(), mme, ("perception", "cognition", "count")),
    (POPE(), pope, ("f1", "random_f1")),
    (CompBench(), compbench, ("overall", "complex", "color")),
]


@pytest.mark.parametrize(("evaluator", "make", "metrics"), CASES)
def test_the_estimate_is_the_difference_of_the_numbers_and_lies_in_its_interval(
    evaluator: Any, make: Any, metrics: Sequence[str]
) -> None:
    a, b = make(0.9, 1), make(0.6, 2)
    found = paired_differences(evaluator.metrics, a, b)
    unit = "prompt" if make is compbench else "image"
    for name in metrics:
        difference = found[name]
        values = [point_estimates(evaluator.metrics, scores)[name] for scores in (a, b)]
        assert difference.estimate == pytest.approx(values[0] - values[1], abs=1e-9)
        interval = difference.interval
        assert interval is not None and 0 < interval.low < difference.estimate < interval.high
        assert interval.estimator == f"paired {unit}-clustered bootstrap, 10000 replicates"


def test_compbench_on_photographs_is_compared_by_the_mean_of_its_categories_and_not_of_its_items() -> None:
    a, b = compbench(0.7, 1), compbench(0.5, 2)
    categories = [
        np.mean(
            [
                np.mean([100 * (x.value - y.value) for x, y in zip(a, b, strict=True) if x.group == group])
                for group in names
            ]
        )
        for names in (*((name,) for name in CATEGORIES[:-1]), ("complex_general", "complex_action", "complex_spatial"))
    ]
    overall = paired_differences(CompBench().metrics, a, b)["overall"].estimate
    items = np.mean([100 * (x.value - y.value) for x, y in zip(a, b, strict=True)])
    assert overall == pytest.approx(np.mean(categories), abs=1e-9)
    assert abs(overall - items) > 0.1


def test_the_difference_of_f1_is_that_of_counts_and_of_perception_that_of_sums_over_categories() -> None:
    a, b = pope(0.9, 1), pope(0.6, 2)

    def f1(scores: Sequence[Score]) -> float:
        said, gold = ([one.raw[what] == "yes" for one in scores] for what in ("answer", "gold"))
        hits = sum(x and y for x, y in zip(said, gold, strict=True))
        return 100 * 2 * hits / (sum(said) + sum(gold))

    assert paired_differences(POPE().metrics, a, b)["f1"].estimate == pytest.approx(f1(a) - f1(b), abs=1e-9)
    a, b = mme(0.9, 1), mme(0.6, 2)

    def points(scores: Sequence[Score]) -> float:
        pairs = [(x.value, y.value) for x, y in zip(scores[::2], scores[1::2], strict=True) if x.group != NAMES[2]]
        return 2 * sum((x + y) / 2 * 100 + 100 * (x + y == 2) for x, y in pairs) / len(pairs)

    assert paired_differences(MME().metrics, a, b)["perception"].estimate == pytest.approx(points(a) - points(b))


@pytest.mark.parametrize(("evaluator", "make", "metrics"), CASES)
def test_a_run_against_itself_differs_by_nothing(evaluator: Any, make: Any, metrics: Sequence[str]) -> None:
    scores = make(0.7, 3)
    found = paired_differences(evaluator.metrics, scores, scores)
    assert set(metrics) <= set(found)
    for difference in found.values():
        assert difference.interval is not None
        assert (difference.estimate, difference.interval.low, difference.interval.high) == (0, 0, 0)


def test_pairing_makes_the_interval_of_like_runs_narrower() -> None:
    a = pope(0.7, 4)
    b = [*a[:-4], *pope(0.7, 5)[-4:]]
    paired = paired_differences(POPE().metrics, a, b)["f1"].interval
    alone = interval_estimates(POPE().metrics, a)["f1"]
    assert paired is not None and paired.high - paired.low < 0.3 * (alone.high - alone.low)


def test_a_picture_of_mme_that_one_run_scored_by_half_leaves_no_difference_of_its_sum() -> None:
    a, b = mme(0.9, 1), mme(0.6, 2)
    lost = Score(b[0].item_id, b[0].cluster_id, None, None, "unscored", None, "lost", b[0].group)
    found = paired_differences(MME().metrics, a, [lost, *b[1:]])
    assert "perception" not in found and "count" not in found
    assert {"cognition", "color", "accuracy"} <= set(found)
    assert found["accuracy"].num_left_out == 1
