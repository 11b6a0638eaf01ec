"""Every declared evaluation keeps the contract of `Evaluator`: nothing that failed becomes a value."""

from __future__ import annotations

import math
import pickle
import random
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest

from segros_eval.benchmarks.base import EvalTask, Evaluator, Sample, Score, Tools
from segros_eval.shapes.judge import SceneJudge
from segros_eval.shapes.reader import SceneReader
from segros_eval.statistics.bootstrap import point_estimates
from segros_train.data.shapes.sets import GenerationSet

SEEDS = (0, 1)
ANSWERS = ("yes", "no", "A", "a red circle")


def asked(task: EvalTask, seeds: Sequence[int]) -> list[Sample]:
    """Return what is asked in the embedded world, or about photographs where that takes no files."""
    if "shapes" not in task.worlds and task.data is not None:
        pytest.skip("this evaluation reads official files only")
    return list(task.evaluator.samples("shapes" if "shapes" in task.worlds else "photo", None, seeds))


@pytest.fixture(scope="module")
def samples(eval_task: EvalTask) -> list[Sample]:
    return asked(eval_task, SEEDS)


@cache
def picture(index: int) -> Any:
    return GenerationSet(seed=11, size=8)[index].image


def responses(samples: Sequence[Sample]) -> list[Any]:
    """Return a readable response to each sample, right or wrong."""
    return [
        picture(index % 8) if sample.kind == "image" else ANSWERS[index % len(ANSWERS)]
        for index, sample in enumerate(samples)
    ]


@pytest.fixture(scope="module")
def tools() -> Tools:
    return Tools(detector=SceneReader(), judge=SceneJudge())


@pytest.fixture(scope="module")
def scores(eval_task: EvalTask, samples: list[Sample], tools: Tools) -> list[Score]:
    return eval_task.evaluator.score(samples, responses(samples), tools)


def test_an_evaluation_is_a_frozen_value_with_a_protocol(eval_task: EvalTask) -> None:
    evaluator = eval_task.evaluator
    assert isinstance(evaluator, Evaluator)
    assert evaluator.protocol
    assert pickle.loads(pickle.dumps(evaluator)) == evaluator
    hash(evaluator)
    assert eval_task.title
    assert eval_task.worlds


def test_every_sample_has_an_id_of_its_own_and_asks_something(eval_task: EvalTask, samples: list[Sample]) -> None:
    assert samples
    assert len({sample.item_id for sample in samples}) == len(samples)
    assert all(sample.prompt.strip() and sample.cluster_id for sample in samples)
    assert {sample.kind for sample in samples} == {eval_task.kind}
    if eval_task.kind == "answer":
        assert all(sample.images for sample in samples)


def test_the_same_samples_are_asked_every_time(eval_task: EvalTask, samples: list[Sample]) -> None:
    assert asked(eval_task, SEEDS) == samples


def test_a_seed_keeps_its_samples_beside_other_seeds(eval_task: EvalTask, samples: list[Sample]) -> None:
    alone = asked(eval_task, SEEDS[:1])
    together = {sample.item_id: sample for sample in samples}
    assert all(together[sample.item_id] == sample for sample in alone)


def test_scores_stand_in_the_order_of_their_samples(samples: list[Sample], scores: list[Score]) -> None:
    asked = [(sample.item_id, sample.cluster_id) for sample in samples]
    assert [(score.item_id, score.cluster_id) for score in scores] == asked


def test_a_readable_response_has_a_finite_value(scores: list[Score]) -> None:
    values = [score.value for score in scores]
    assert all(value is not None and math.isfinite(value) for value in values)
    assert len(set(values)) > 1, "right and wrong responses are judged alike"


def test_a_missing_response_is_unscored_with_a_reason(eval_task: EvalTask, samples: list[Sample], tools: Tools) -> None:
    scores = eval_task.evaluator.score(samples, [None] * len(samples), tools)
    assert all(score.status == "unscored" and score.value is None and score.reason for score in scores)


def test_nothing_scored_means_no_number(eval_task: EvalTask, samples: list[Sample], tools: Tools) -> None:
    missing = eval_task.evaluator.score(samples, [None] * len(samples), tools)
    for nothing in ([], missing):
        assert set(point_estimates(eval_task.evaluator.metrics, nothing).values()) == {None}


def test_an_unscored_response_moves_no_headline(
    eval_task: EvalTask, samples: list[Sample], scores: list[Score], tools: Tools
) -> None:
    # Whole clusters, because a benchmark may count a prompt or a picture by all of its responses together.
    clusters = list(dict.fromkeys(sample.cluster_id for sample in samples))
    lost = set(clusters[::2])
    kept = [index for index, sample in enumerate(samples) if sample.cluster_id not in lost]
    answers = responses(samples)
    given = [None if sample.cluster_id in lost else answers[index] for index, sample in enumerate(samples)]
    mixed = eval_task.evaluator.score(samples, given, tools)
    assert [mixed[index].value for index in kept] == [scores[index].value for index in kept]
    headline = next(iter(point_estimates(eval_task.evaluator.metrics, scores)))
    found = point_estimates(eval_task.evaluator.metrics, mixed)[headline]
    assert found is not None
    assert found == point_estimates(eval_task.evaluator.metrics, [mixed[index] for index in kept])[headline]


def test_metrics_have_the_same_names_whatever_was_scored_and_the_headline_is_always_there(
    eval_task: EvalTask, samples: list[Sample], scores: list[Score], tools: Tools
) -> None:
    metrics = eval_task.evaluator.metrics
    missing = eval_task.evaluator.score(samples, [None] * len(samples), tools)
    assert list(point_estimates(metrics, missing)) == list(point_estimates(metrics, scores))
    for few in ([], scores[:5]):
        assert next(iter(point_estimates(metrics, few))) == metrics[0].name


def test_a_metric_under_weights_of_one_is_its_value_and_without_a_cluster_that_of_the_rest(
    eval_task: EvalTask, scores: list[Score]
) -> None:
    asked = point_estimates(eval_task.evaluator.metrics, scores)
    for metric in eval_task.evaluator.metrics:
        if not metric.clusters or metric.name not in asked:
            continue
        clusters = metric.tally(scores).clusters
        weights = np.ones((2, len(clusters)))
        weights[1, 0] = 0
        whole, rest = metric.aggregate(scores, weights)
        assert whole == pytest.approx(metric.aggregate(scores)[0], nan_ok=True), metric.name
        kept = [score for score in scores if score.cluster_id not in (clusters[0], clusters[0].partition("/")[2])]
        assert rest == pytest.approx(metric.aggregate(kept)[0], nan_ok=True), metric.name


def test_the_order_of_scores_changes_no_metric(eval_task: EvalTask, scores: list[Score]) -> None:
    shuffled = random.Random(3).sample(scores, len(scores))
    found, expected = (
        point_estimates(eval_task.evaluator.metrics, shuffled),
        point_estimates(eval_task.evaluator.metrics, scores),
    )
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == (None if value is None else pytest.approx(value, rel=1e-12)), name


def test_scoring_one_by_one_equals_scoring_together(
    eval_task: EvalTask, samples: list[Sample], scores: list[Score], tools: Tools
) -> None:
    some = range(0, len(samples), max(1, len(samples) // 12))
    given = responses(samples)
    for index in some:
        assert eval_task.evaluator.score([samples[index]], [given[index]], tools) == [scores[index]]
