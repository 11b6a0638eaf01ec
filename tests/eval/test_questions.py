"""Question benchmarks: what is unread, missing or incomplete is no number, and intervals are what they say."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segros_eval.benchmarks.base import Sample, Score, Tools
from segros_eval.benchmarks.vqa.categories import SPLITS
from segros_eval.benchmarks.vqa.choices import infer_choice, lmms_letter, official_letter, open_readings
from segros_eval.benchmarks.vqa.gqa import GQA
from segros_eval.benchmarks.vqa.mme import MME
from segros_eval.benchmarks.vqa.mmmu import MMMU
from segros_eval.benchmarks.vqa.pictures import Joined
from segros_eval.benchmarks.vqa.pope import POPE
from segros_eval.benchmarks.vqa.questions import LETTER, WORD
from segros_eval.benchmarks.vqa.seed import SEED
from segros_eval.benchmarks.vqa.yes_no import exact, first_letters, first_sentence, whole_word
from segros_eval.statistics.bootstrap import interval_estimates, point_estimates
from segros_eval.statistics.clustered import clustered_interval, clustered_stderr, mean_stderr
from segros_train.data.shapes import captions

EVALUATORS = (MME(), POPE(), GQA(), MMMU(), SEED())
OPTIONS = {"A": "plant cell", "B": "animal cell", "C": "bacterium", "D": "virus"}


def score(group: str, picture: str, value: float | None, *, item: str = "", answer: str = "yes") -> Score:
    status: Any = "unscored" if value is None else "scored"
    raw = None if value is None else {"answer": answer, "gold": answer if value else "no"}
    return Score(f"{group}/{picture}/{item or value}", picture, raw, None, status, value, group=group)


def is_free(sample: Sample) -> bool:
    """Tell whether a question of MMMU has no options: harnesses differ on free answers."""
    return sample.metadata.get("question_type") == "open"


def pair(group: str, picture: str, first: float | None, second: float | None) -> list[Score]:
    return [score(group, picture, first, item="a"), score(group, picture, second, item="b")]


def test_a_picture_of_mme_is_worth_its_share_and_whether_both_are_right() -> None:
    for values, points in (((1.0, 1.0), 200), ((1.0, 0.0), 50), ((0.0, 0.0), 0)):
        metrics = point_estimates(MME().metrics, pair("count", "p", *values))
        assert metrics["count"] == metrics["perception"] == points
        assert "cognition" not in metrics and "color" not in metrics


def test_mme_is_refused_when_a_pair_is_incomplete_and_the_other_sum_stays() -> None:
    whole = [*pair("count", "p", 1, 1), *pair("color", "q", 1, 1), *pair("code_reasoning", "r", 1, 0)]
    for broken in (pair("color", "s", 1, None), pair("color", "s", 1, 1)[:1]):
        metrics = point_estimates(MME().metrics, [*whole, *broken])
        assert metrics["color"] is None and metrics["perception"] is None
        assert metrics["count"] == 200 and metrics["cognition"] == 50
        assert "perception" not in interval_estimates(MME().metrics, [*whole, *broken])


def test_a_picture_of_mme_that_nobody_could_read_is_left_out_and_a_category_without_any_refuses_its_sum() -> None:
    scores = [*pair("count", "p", 1, 1), *pair("count", "q", None, None)]
    assert point_estimates(MME().metrics, scores)["perception"] == 200
    assert point_estimates(MME().metrics, [*scores, *pair("color", "r", None, None)])["perception"] is None


def test_a_category_that_a_benchmark_does_not_have_is_refused_by_name() -> None:
    for evaluator in (MME(), POPE(), MMMU()):
        with pytest.raises(ValueError, match="weather"):
            point_estimates(evaluator.metrics, [score("weather", "p", 1)])


def test_what_would_divide_by_zero_is_no_number() -> None:
    metrics = point_estimates(POPE().metrics, [score("random", "p", 1.0, answer="no")])
    assert metrics["accuracy"] == 100 and metrics["yes_ratio"] == 0
    assert metrics["precision"] is None and metrics["recall"] is None and metrics["f1"] is None
    assert "popular_accuracy" not in metrics and metrics["official_mean_f1"] is None


def pope_scores(num_pictures: int, seed: int = 0) -> list[Score]:
    rng = np.random.default_rng(seed)
    scores = []
    for picture in range(num_pictures):
        skill = rng.uniform(0.3, 1)
        for split in SPLITS:
            for place in range(4):
                gold = "yes" if place < 2 else "no"
                answer = gold if rng.random() < skill else {"yes": "no", "no": "yes"}[gold]
                raw = {"answer": answer, "gold": gold}
                value = float(answer == gold)
                scores.append(
                    Score(f"{picture}/{split}/{place}", f"{picture}", raw, answer, "scored", value, "", split)
                )
    return scores


def test_each_number_of_pope_lies_in_an_interval_of_its_own_kind() -> None:
    scores = pope_scores(60)
    metrics, intervals = point_estimates(POPE().metrics, scores), interval_estimates(POPE().metrics, scores)
    for name in ("accuracy", "f1", "precision", "recall", "yes_ratio", "random_accuracy", "random_f1"):
        value = metrics[name]
        assert value is not None
        assert intervals[name].low < value < intervals[name].high
    assert intervals["accuracy"].estimator == "image-clustered standard error"
    assert intervals["f1"].estimator == "image-clustered bootstrap, 10000 replicates"
    assert intervals == interval_estimates(POPE().metrics, list(reversed(scores)))
    assert intervals["f1"] != interval_estimates(POPE().metrics, scores, seed=1)["f1"]


def test_the_total_of_mme_has_an_interval_of_pictures_within_categories() -> None:
    rng = np.random.default_rng(2)
    scores = [
        one
        for category in ("count", "color", "OCR")
        for picture in range(30)
        for one in pair(category, f"{category}{picture}", *map(float, rng.integers(0, 2, 2)))
    ]
    metrics, intervals = point_estimates(MME().metrics, scores), interval_estimates(MME().metrics, scores)
    total = metrics["perception"]
    assert total is not None and intervals["perception"].low < total < intervals["perception"].high
    assert intervals["perception"].estimator == "image-clustered bootstrap, 10000 replicates"
    widths = [intervals[name].high - intervals[name].low for name in ("count", "color", "OCR")]
    # Categories are independent: their variances add.
    width = intervals["perception"].high - intervals["perception"].low
    assert width == pytest.approx(float(np.linalg.norm(widths)), rel=0.05)


def test_a_picture_alone_gives_no_interval() -> None:
    assert interval_estimates(POPE().metrics, pope_scores(1)) == {}
    assert clustered_interval([score("g", "p", 1, item="1"), score("g", "p", 0, item="2")]) is None


def test_where_all_pictures_agree_the_interval_is_wilsons_and_says_so() -> None:
    found = clustered_interval([score("g", f"{n}", 1.0) for n in range(10)])
    assert found is not None and found.high == 100 and 60 < found.low < 80
    assert found.estimator.startswith("Wilson, 10 images")


@given(st.lists(st.tuples(st.floats(0, 1), st.sampled_from("abcd")), min_size=2, max_size=40))
@settings(max_examples=100, deadline=None)
def test_clusters_of_one_have_the_plain_standard_error_and_copies_widen_it(rows: list[tuple[float, str]]) -> None:
    values = [value for value, _ in rows]
    alone = [str(n) for n in range(len(values))]
    assert clustered_stderr(values, alone) == pytest.approx(mean_stderr(values))
    # Each value three times in a cluster says no more than once: the error stays near that of single values.
    copied = clustered_stderr(values * 3, alone * 3)
    n = len(values)
    spread = float(np.std(values, ddof=1))
    assert copied == pytest.approx(spread * ((n - 1) / (n * (3 * n - 1)) + 2 * (n - 1) / (3 * n * n)) ** 0.5, abs=1e-9)


@given(st.text(max_size=60))
@settings(max_examples=300, deadline=None)
def test_no_answer_stops_a_reader_and_none_invents_a_letter(answer: str) -> None:
    for read in (first_letters, exact, whole_word):
        assert read(answer) in ("yes", "no", None)
    assert first_sentence(answer) in ("yes", "no")
    for choose in (official_letter, lmms_letter, infer_choice):
        assert choose(answer, OPTIONS) in (*OPTIONS, "Z", None)
    readings = open_readings(answer)
    assert readings and len(set(map(str, readings))) <= len(readings)


@pytest.mark.parametrize("evaluator", EVALUATORS, ids=lambda one: type(one).__name__)
def test_an_answer_that_is_empty_is_scored_as_wrong_and_counted_as_unparsed(evaluator: Any) -> None:
    samples = [
        sample for sample in evaluator.samples("shapes", None, (0,)) if sample.metadata.get("question_type") != "open"
    ]
    scores = evaluator.score(samples[:4], [""] * 4, Tools())
    assert [(one.status, one.value) for one in scores] == [("unparsed", 0.0)] * 4
    assert point_estimates(evaluator.metrics, scores)["unparsed"] == 100


@pytest.mark.parametrize("evaluator", EVALUATORS, ids=lambda one: type(one).__name__)
def test_the_right_answers_score_everything_under_every_protocol(evaluator: Any) -> None:
    for rules in ("standard", "lmms-eval", "vlmevalkit"):
        one = dataclasses.replace(evaluator, rules=rules)
        samples = list(one.samples("shapes", None, (0,)))
        scores = one.score(samples, [sample.metadata["answer"] for sample in samples], Tools())
        wrong = [one for one, given in zip(scores, samples, strict=True) if one.value != 1 and not is_free(given)]
        assert wrong == []
        assert rules in one.protocol


def test_options_depart_from_a_protocol_by_name() -> None:
    assert MME().protocol == "mme standard@1"
    assert POPE(rules="vlmevalkit", shapes_pictures=3).protocol == "pope vlmevalkit@e8e78f0"
    assert POPE(num_rows=12).protocol == "pope standard@1 num_rows=12"
    assert "max_new_tokens=8 decoding=logprobs" in MME(max_new_tokens=8, decoding="logprobs").protocol
    assert "multi_image=first" in MMMU(multi_image="first").protocol


@pytest.mark.parametrize("evaluator", [MME(), POPE(), MMMU(), SEED()], ids=lambda one: type(one).__name__)
def test_weighed_choices_are_read_by_the_likeliest(evaluator: Any) -> None:
    one = dataclasses.replace(evaluator, decoding="logprobs")
    samples = [sample for sample in one.samples("shapes", None, (0,)) if sample.choices]
    assert samples
    for sample in samples[:6]:
        weights = [-5.0] * len(sample.choices)
        right = next(
            n for n, choice in enumerate(sample.choices) if choice.lower() == sample.metadata["answer"].lower()
        )
        weights[right] = -0.1
        (found,) = one.score([sample], [weights], Tools())
        assert found.value == 1 and found.raw["logprobs"][sample.choices[right]] == -0.1
    assert all(not sample.choices for sample in evaluator.samples("shapes", None, (0,)))


def test_a_question_about_two_pictures_shows_them_by_the_policy_that_was_chosen() -> None:
    shown = {}
    for policy in ("joined", "first", "all"):
        samples = MMMU(multi_image=policy).samples("shapes", None, (0,))  # type: ignore[arg-type]
        shown[policy] = next(sample.images for sample in samples if "<image 2>" in sample.prompt)
    (joined,), (first,) = shown["joined"], shown["first"]
    assert isinstance(joined, Joined) and joined.parts == shown["all"] and first == shown["all"][0]
    picture = joined.open()
    assert picture.size == (96 * 2 + 8, 96)
    assert picture.crop((0, 0, 96, 96)).tobytes() == first.open().tobytes()  # type: ignore[union-attr]


def test_requests_for_short_answers_are_those_that_training_uses() -> None:
    assert (WORD, LETTER) == (captions.WORD, captions.LETTER)


def test_item_values_add_up_to_the_headline_where_it_is_a_mean() -> None:
    scores = pope_scores(20)
    assert point_estimates(POPE().metrics, scores)["accuracy"] == pytest.approx(
        100 * float(np.mean([s.value for s in scores]))
    )
    assert Counter(s.group for s in scores) == dict.fromkeys(SPLITS, 80)


def test_a_batch_of_answers_that_is_too_short_is_refused() -> None:
    asked: Sequence[Sample] = list(GQA().samples("shapes", None, (0,)))[:2]
    with pytest.raises(ValueError):
        GQA().score(asked, ["red"], Tools())
