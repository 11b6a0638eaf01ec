"""Comparing two runs, and the page of one run."""

import json
import shutil
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from segros_eval.benchmarks.base import Interval, Metric, Result, Sample, Score
from segros_eval.benchmarks.vqa.pictures import ScenePicture
from segros_eval.pipeline.items import write_items
from segros_eval.pipeline.store import write_result, write_scores
from segros_eval.reporting.compare import Contrast, compare_runs
from segros_eval.reporting.run_report import render_comparison, render_report
from segros_eval.statistics.paired import Difference
from segros_eval.statistics.tally import item_mean, item_tally, mean_of_groups
from segros_train.errors import PrerequisiteError

PROMPTS = 30
DRAWS = 4


@dataclass(frozen=True)
class TwoGroups:
    """A benchmark whose number is the mean of its groups' means."""

    groups: tuple[str, ...] = ("colors", "counting")

    @property
    def metrics(self):
        tally = item_tally()
        whole = Metric("overall", tally, lambda totals: 100 * mean_of_groups(totals, self.groups), clusters="prompt")
        return whole, *(item_mean(name, tally, name, factor=100, clusters="prompt") for name in self.groups)


DECLARED = {"geneval": SimpleNamespace(evaluator=TwoGroups())}


def scores(share: float, *, seed: int = 0) -> list[Score]:
    """Return right and wrong answers of two groups, `share` of them right."""
    rng = np.random.default_rng(seed)
    return [
        Score(
            item_id=f"{prompt:05d}/{draw:05d}",
            cluster_id=f"{prompt:05d}",
            raw=None,
            parsed=None,
            status="scored",
            value=float(rng.random() < share),
            reason="expected 2, found 1",
            group="counting" if prompt % 2 else "colors",
        )
        for prompt in range(PROMPTS)
        for draw in range(DRAWS)
    ]


def result(judged: list[Score], *, method: str, **changes) -> Result:
    known = [score for score in judged if score.value is not None]
    groups = {name: [s.value for s in known if s.group == name] for name in ("counting", "colors")}
    means = {name: 100 * float(np.mean(values)) for name, values in groups.items()}
    overall = float(np.mean(list(means.values())))
    whole = Result(
        method=method,
        backbone="harmon-tiny",
        evaluator="geneval",
        metrics={"overall": overall, **means},
        intervals={"overall": Interval(overall - 5, overall + 5, "prompt-clustered bootstrap")},
        num_samples=len(known),
        num_unparsed=0,
        num_unscored=len(judged) - len(known),
        seeds=(0,),
        protocol="geneval@test",
        world="shapes",
        key=f"key-{method}",
        provenance={"data": "shapes", "commit": "abc", "settings": {"num_steps": 8}},
    )
    return replace(whole, **changes)


def run(folder, judged, *, method="segros", **changes):
    place = folder / "evals" / "geneval"
    write_scores(place / "scores.jsonl", judged)
    write_result(place / "result.json", result(judged, method=method, **changes))
    (folder / "plan.json").write_text(json.dumps({"seed": 0, "card": {"name": "harmon-tiny"}}))
    return folder


def test_a_run_compared_with_itself_differs_by_nothing(tmp_path):
    same = scores(0.5)
    comparison = compare_runs(run(tmp_path / "a", same), run(tmp_path / "b", same), DECLARED)
    assert [item.metric for item in comparison.contrasts] == ["overall", "colors", "counting"]
    for contrast in comparison.contrasts:
        difference = contrast.difference
        assert (difference.estimate, difference.interval.low, difference.interval.high) == (0, 0, 0)
        assert contrast.verdict == "difference 0.0 [0.0, 0.0]: not distinguishable at 95%"


def test_the_compared_difference_is_that_of_the_printed_headlines(tmp_path):
    a, b = scores(0.9), scores(0.3, seed=1)
    headline = compare_runs(run(tmp_path / "a", a), run(tmp_path / "b", b), DECLARED).contrasts[0]
    printed = result(a, method="x").metrics["overall"] - result(b, method="y").metrics["overall"]
    assert headline.difference.estimate == pytest.approx(printed, abs=1e-9)
    assert headline.distinguishable and headline.verdict.endswith("A is higher at 95%")


@pytest.mark.parametrize(
    ("estimate", "interval", "verdict"),
    [
        (1.2, (-0.8, 3.2), "difference 1.2 [−0.8, 3.2]: not distinguishable at 95%"),
        (-2.0, (-3.0, -1.0), "difference −2.0 [−3.0, −1.0]: B is higher at 95%"),
        (1.2, None, "difference 1.2: too few clusters to tell"),
    ],
)
def test_a_verdict_says_what_the_interval_allows(estimate, interval, verdict):
    reach = Interval(*interval, "bootstrap") if interval else None
    assert Contrast("geneval", "overall", Difference(estimate, reach, 120, 0)).verdict == verdict


def test_an_item_that_one_run_left_unscored_is_left_out_and_counted(tmp_path):
    a, b = scores(0.9), scores(0.3, seed=1)
    a[0] = replace(a[0], status="unscored", value=None)
    comparison = compare_runs(run(tmp_path / "a", a), run(tmp_path / "b", b), DECLARED)
    difference = comparison.contrasts[0].difference
    assert (difference.num_items, difference.num_left_out) == (PROMPTS * DRAWS - 1, 1)


def test_an_evaluation_that_is_not_declared_here_is_not_compared(tmp_path):
    a, b = (run(tmp_path / name, scores(0.5)) for name in "ab")
    with pytest.raises(PrerequisiteError, match="geneval: no declared evaluation of this name"):
        compare_runs(a, b, {})


def test_runs_are_compared_under_the_options_they_were_made_with(tmp_path):
    made = {"evaluator": {"type": "TwoGroups", "groups": ["counting"]}}
    a, b = (run(tmp_path / name, scores(0.5), provenance=made) for name in "ab")
    assert [item.metric for item in compare_runs(a, b, DECLARED).contrasts] == ["overall", "counting"]
    c = run(tmp_path / "c", scores(0.5), provenance={"evaluator": {"type": "GenEval"}})
    with pytest.raises(PrerequisiteError, match="no declared evaluation of this name and kind"):
        compare_runs(c, c, DECLARED)


def test_groups_that_share_their_clusters_are_resampled_together(tmp_path):
    judged = [replace(score, cluster_id=str(int(score.cluster_id) // 2)) for score in scores(0.5)]
    comparison = compare_runs(run(tmp_path / "a", judged), run(tmp_path / "b", judged), DECLARED)
    assert [item.metric for item in comparison.contrasts] == ["overall", "colors", "counting"]


def test_runs_by_another_protocol_are_not_compared(tmp_path):
    a = run(tmp_path / "a", scores(0.5))
    b = run(tmp_path / "b", scores(0.5), protocol="geneval@other")
    with pytest.raises(PrerequisiteError, match="protocol geneval@test, B geneval@other"):
        compare_runs(a, b, DECLARED)


def test_runs_without_a_common_evaluation_are_refused(tmp_path):
    a = run(tmp_path / "a", scores(0.5))
    (tmp_path / "b").mkdir()
    with pytest.raises(PrerequisiteError, match="share no evaluation"):
        compare_runs(a, tmp_path / "b", DECLARED)
    with pytest.raises(PrerequisiteError, match="no run folder"):
        compare_runs(a, tmp_path / "nowhere", DECLARED)


@pytest.mark.parametrize("fmt", ["md", "html"])
def test_a_rendered_comparison_opens_with_the_verdict_on_the_headline(tmp_path, fmt):
    same = scores(0.5)
    comparison = compare_runs(run(tmp_path / "a", same), run(tmp_path / "b", same), DECLARED)
    text = render_comparison(comparison, fmt=fmt)
    assert text.index("geneval overall: difference 0.0") < text.index("McNemar")


@pytest.fixture
def illustrated(tmp_path):
    """A run with pictures, a training curve and one item without a response."""
    folder = tmp_path / "run"
    judged = scores(0.5)
    judged[0] = replace(judged[0], status="unscored", value=None, reason="no image")
    run(folder, judged)
    images = folder / "responses" / "images"
    images.mkdir(parents=True)
    samples, paths = [], []
    for number, score in enumerate(judged):
        samples.append(Sample(score.item_id, score.cluster_id, "image", f"a photo of <{number}>"))
        paths.append(None if number == 0 else images / f"{number}.png")
        if number:
            Image.new("RGB", (8, 8), (number, 0, 0)).save(paths[-1])
    write_items(folder / "evals" / "geneval" / "items.jsonl", samples, paths)
    lines = [{"step": step, "t2i_loss": 1 / step, "i2t_loss": None} for step in range(1, 50)]
    (folder / "train").mkdir()
    (folder / "train" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_a_report_shows_numbers_failures_pictures_curve_settings_and_provenance(illustrated):
    page = render_report(illustrated)
    headlines = [part.split("<")[0] for part in page.split("<h2>")[1:]]
    assert headlines == [
        "geneval: metrics",
        "geneval: what failed",
        "geneval: random items",
        "geneval: worst items",
        "Training: text-to-image loss",
        "geneval: provenance",
        "Settings",
    ]
    assert page.count('<img src="data:image/png;base64,') == 24
    assert "no image" in page and "<polyline" in page and "settings.num_steps" in page and "card.name" in page


def test_the_worst_items_are_wrong_ones_of_every_group(illustrated):
    page = render_report(illustrated)
    worst = page.split("geneval: worst items</h2>")[1].split("</section>")[0]
    captions = [part.split("</figcaption>")[0] for part in worst.split("<figcaption>")[1:]]
    assert len(captions) == 12 and all("· 0.0 ·" in caption for caption in captions)
    numbers = [int(caption.split("&lt;")[1].split("&gt;")[0]) for caption in captions]
    assert len({number // DRAWS % 2 for number in numbers}) == 2


def test_a_picture_that_cannot_be_read_leaves_its_caption_in_the_report(illustrated):
    for path in (illustrated / "responses" / "images").glob("*.png"):
        path.write_bytes(b"no image")
    page = render_report(illustrated)
    assert "data:image/png" not in page and page.count("<figcaption>") == 24


def test_a_report_is_the_same_wherever_the_run_folder_lies(illustrated, tmp_path):
    moved = tmp_path / "elsewhere" / "run"
    shutil.copytree(illustrated, moved)
    assert render_report(moved) == render_report(illustrated)


def test_prompts_are_escaped_in_a_report(illustrated):
    assert "a photo of <1>" not in render_report(illustrated)


def test_a_report_of_a_run_without_evaluations_says_so(tmp_path):
    (tmp_path / "plan.json").write_text('{"seed": 0}')
    assert "No evaluation has finished" in render_report(tmp_path, fmt="md")


@pytest.mark.parametrize("content", [None, "{"])
def test_a_folder_without_a_whole_plan_is_refused_by_name(tmp_path, content):
    if content is not None:
        (tmp_path / "plan.json").write_text(content)
    with pytest.raises(PrerequisiteError, match=r"plan\.json"):
        render_report(tmp_path)


def test_a_markdown_report_holds_metrics_failures_and_settings(illustrated):
    text = render_report(illustrated, fmt="md")
    assert "## geneval: metrics" in text and "| 1 | unscored | colors | no image |" in text and "`harmon-tiny`" in text


def test_a_report_shows_drawn_pictures_beside_the_answers_that_were_given(tmp_path):
    folder = run(tmp_path / "a", scores(0.5))
    place = folder / "evals" / "geneval"
    asked = [Sample(f"{n}", f"{n}", "answer", f"what is {n}?", images=(ScenePicture(1, n),)) for n in range(100)]
    raw = {"answer": "a ring", "gold": "red"}
    given = [Score(one.item_id, one.cluster_id, raw, "a ring", "scored", 0.0, "right is red") for one in asked]
    write_scores(place / "scores.jsonl", given)
    write_items(place / "items.jsonl", asked, ["a ring"] * 100)
    assert len(list((place / "pictures").glob("*.png"))) == 25
    page = render_report(folder)
    assert "data:image/png" in page and "“a ring” · 0.0 · right is red" in page
