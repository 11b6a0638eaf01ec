"""A run goes from a plan to results through files; what is done is not done twice, what fails is told."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cli_world
import pytest
from PIL import Image

from segros_eval.pipeline.catalog import Catalog, load_catalog
from segros_eval.pipeline.lock import run_lock
from segros_eval.pipeline.plan import Request, RunPlan, make_plan
from segros_eval.pipeline.progress import Silent
from segros_eval.pipeline.reuse import Code, read_code, write_code
from segros_eval.pipeline.runner import Outcome, run_plan
from segros_eval.pipeline.store import read_result, read_scores
from segros_train.backbones import loading
from segros_train.data.shapes.captions import geneval_metadata
from segros_train.data.shapes.world import COLORS, Scene, SceneObject, render
from segros_train.errors import PrerequisiteError
from segros_train.training import fitting
from segros_train.types import GenerationSettings

CELLS = ((2, 2), (0, 0), (4, 4), (0, 4))
STEPS = {"left of": (0, -2), "right of": (0, 2), "above": (-2, 0), "below": (2, 0)}


def scene_of(record: Mapping[str, Any]) -> Scene:
    """Return a scene that shows what a record of the evaluation set asks for."""
    wanted = [clause for clause in record["include"] for _ in range(clause["count"])]
    things = []
    for clause, cell in zip(wanted, CELLS, strict=False):
        relation = clause.get("position", [None])[0]
        row, column = (CELLS[0][axis] + STEPS[relation][axis] for axis in (0, 1)) if relation else cell
        color = clause.get("color", "red")
        things.append(SceneObject(clause["class"], color, row, column, 12, (2, 2), COLORS[color]))
    return Scene(record["tag"], tuple(things), None, (0, 0))


class Draughtsman:
    """Draws exactly what the prompt asks, but for the prompts it gets wrong or refuses."""

    def __init__(self, wrong: Callable[[str], bool] = lambda prompt: False, refuses: str = "") -> None:
        self.wrong, self.refuses, self.num_drawn = wrong, refuses, 0
        self.records = {record["prompt"]: record for record in geneval_metadata(2)}

    def eval(self) -> Draughtsman:
        return self

    def configure(self, conditioning: Any) -> None:
        self.conditioning = conditioning

    def generate(self, prompts: Sequence[str], *, seeds: Sequence[int], settings: Any) -> Iterator[Image.Image]:
        for prompt in prompts:
            if prompt == self.refuses:
                raise ValueError("the prompt is too long")
            self.num_drawn += 1
            record = self.records[prompt]
            empty = dataclasses.replace(scene_of(record), objects=())
            yield render(empty if self.wrong(prompt) else scene_of(record))


class Watcher(Silent):
    """Remembers phases and notes."""

    def __init__(self) -> None:
        self.phases: list[str] = []
        self.notes: list[str] = []

    @contextmanager
    def phase(self, title: str, total: int) -> Iterator[Any]:
        self.phases.append(title.split()[0])
        yield lambda num_more, note="": None

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture(scope="module")
def declared(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    return load_catalog(cli_world.declare(tmp_path_factory.mktemp("world")))


def plan_of(catalog: Catalog, **changes: Any) -> RunPlan:
    request = Request(methods=("none",), backbones=("micro",), evaluators=("geneval",))
    return make_plan(catalog, dataclasses.replace(request, **changes))


def run(
    monkeypatch: pytest.MonkeyPatch, plan: RunPlan, out: Path, backbone: Draughtsman, watcher: Silent | None = None
) -> list[Outcome]:
    monkeypatch.setattr(loading, "load", lambda card, **how: backbone)
    return run_plan(plan, out=out, device="cpu", listener=watcher or Silent())


def test_a_perfect_draughtsman_scores_a_hundred_in_every_tag(
    declared: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (outcome,) = run(monkeypatch, plan_of(declared), tmp_path, Draughtsman())
    assert outcome.result is not None
    assert set(outcome.result.metrics.values()) == {100.0}
    assert (outcome.result.num_samples, outcome.result.num_unscored) == (cli_world.NUM_IMAGES, 0)
    assert outcome.result.world == "shapes" and outcome.result.seeds == (0,)


def test_the_batch_that_a_device_holds_by_count_is_drawn_told_and_recorded(
    declared: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Batches(Draughtsman):
        sizes: list[int] = []

        def generate(self, prompts: Sequence[str], **how: Any) -> Iterator[Image.Image]:
            self.sizes.append(len(prompts))
            return super().generate(prompts, **how)

    monkeypatch.setattr(fitting, "fitting_batch", lambda *_: fitting.Batch(batch_size=3, peak=2 * 2**30))
    watcher = Watcher()
    (outcome,) = run(
        monkeypatch, plan_of(declared, overrides=("settings.batch_size=none",)), tmp_path, Batches(), watcher
    )
    assert outcome.result is not None
    assert outcome.result.provenance["drawing"] == {"batch_size": 3, "peak": 2 * 2**30}
    assert "Drawing 3 images at once: 2 GiB, counted." in watcher.notes
    assert max(Batches.sizes) == 3 and sum(Batches.sizes) == cli_world.NUM_IMAGES


def test_the_batch_is_counted_for_a_gpu_alone_and_only_where_nothing_sets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone: Any = object()
    chosen = fitting.Batch(5, 1)
    monkeypatch.setattr(fitting, "choose_batch", lambda *_, **__: chosen)
    monkeypatch.setattr(fitting, "_capacity", lambda device: 0)
    free, fixed = GenerationSettings(num_steps=1), GenerationSettings(num_steps=1, batch_size=2)
    assert fitting.fitting_batch(backbone, free, "cuda:0") is chosen
    assert fitting.fitting_batch(backbone, fixed, "cuda:0") is None
    assert fitting.fitting_batch(backbone, free, "cpu") is None


def test_wrong_drawings_cost_exactly_their_share(
    declared: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = next(record["prompt"] for record in geneval_metadata(2) if record["tag"] == "colors")
    (outcome,) = run(monkeypatch, plan_of(declared), tmp_path, Draughtsman(wrong=lambda prompt: prompt == failed))
    assert outcome.result is not None
    assert outcome.result.metrics["colors"] == 50.0 and outcome.result.metrics["counting"] == 100.0
    assert outcome.result.metrics["overall"] == pytest.approx(100 - 50 / 6)


def test_the_run_folder_tells_what_was_done(declared: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (outcome,) = run(monkeypatch, plan_of(declared), tmp_path, Draughtsman())
    place = outcome.folder / "evals" / "geneval"
    assert read_result(place / "result.json") == outcome.result
    assert len(read_scores(place / "scores.jsonl")) == cli_world.NUM_IMAGES
    assert json.loads((outcome.folder / "plan.json").read_text())["task"]["name"] == "none"
    assert len(list((outcome.folder / "responses" / "images").glob("*.png"))) == cli_world.NUM_IMAGES


def test_provenance_names_code_weights_settings_and_run(
    declared: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (outcome,) = run(monkeypatch, plan_of(declared, limit=6), tmp_path, Draughtsman())
    assert outcome.result is not None
    told = outcome.result.provenance
    assert told["versions"]["torch"] and told["run"] == outcome.folder.name and told["device"] == "cpu"
    assert told["settings"]["num_steps"] == 2 and told["weights"]["model"] and told["data"] is None
    assert told["subset"] is True and told["limit"] == 6


def test_a_finished_cell_is_not_done_again(declared: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (first,) = run(monkeypatch, plan_of(declared), tmp_path, Draughtsman())
    again = Draughtsman()
    (second,) = run(monkeypatch, plan_of(declared), tmp_path, again)
    assert second.reused and second.result == first.result and again.num_drawn == 0


def test_a_larger_run_draws_only_what_a_smaller_one_lacks(
    declared: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(monkeypatch, plan_of(declared, limit=6), tmp_path, Draughtsman())
    again = Draughtsman()
    (outcome,) = run(monkeypatch, plan_of(declared), tmp_path, again)
    assert not outcome.reused and again.num_drawn == cli_world.NUM_IMAGES - 6 * 2


def test_a_damaged_image_is_drawn_and_scored_again(
    declared: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (first,) = run(monkeypatch, plan_of(declared), tmp_path, Draughtsman())
    next((first.folder / "responses" / "images").glob("*.png")).write_bytes(b"torn")
    (first.folder / "evals" / "geneval" / "result.json").unlink()
    again = Draughtsman()
    (second,) = run(monkeypatch, plan_of(declared), tmp_path, again)
    assert again.num_drawn == 1 and second.result is not None and second.result.num_unscored == 0


def test_a_refused_prompt_is_unscored_with_its_reason_and_enters_no_mean(
    declared: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = geneval_metadata(2)[0]["prompt"]
    (outcome,) = run(monkeypatch, plan_of(declared), tmp_path, Draughtsman(refuses=prompt))
    assert outcome.result is not None
    assert outcome.result.num_unscored == 2 and outcome.unscored_share == pytest.approx(2 / cli_world.NUM_IMAGES)
    assert outcome.result.metrics["overall"] == 100.0
    scores = read_scores(outcome.folder / "evals" / "geneval" / "scores.jsonl")
    (reason,) = {score.reason for score in scores if score.value is None and "too long" in score.reason} or {""}
    assert "the prompt is too long" in reason


def test_a_cell_with_unscored_items_is_tried_again(
    declared: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(monkeypatch, plan_of(declared), tmp_path, Draughtsman(refuses=geneval_metadata(2)[0]["prompt"]))
    (outcome,) = run(monkeypatch, plan_of(declared), tmp_path, Draughtsman())
    assert outcome.result is not None and outcome.result.num_unscored == 0 and not outcome.reused


def test_a_model_that_cannot_be_made_is_recorded_and_the_others_go_on(
    declared: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any) -> Any:
        raise PrerequisiteError("the loss is not finite at update 7")

    monkeypatch.setattr("segros_eval.pipeline.runner.train_stage", fail)
    watcher = Watcher()
    plan = plan_of(declared, methods=("sft", "none"))
    failed, scored = run(monkeypatch, plan, tmp_path, Draughtsman(), watcher)
    assert failed.failure == "the loss is not finite at update 7" and failed.result is None
    assert scored.result is not None and any("update 7" in note for note in watcher.notes)


def test_a_fault_of_the_program_keeps_its_traceback(
    declared: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = Draughtsman()
    broken.records = {}
    with pytest.raises(KeyError):
        run(monkeypatch, plan_of(declared), tmp_path, broken)


def test_the_base_follows_the_attention_of_its_task(
    declared: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = Draughtsman()
    run(monkeypatch, plan_of(declared), tmp_path, backbone)
    assert backbone.conditioning.attention == "native"


@pytest.mark.parametrize(
    ("overrides", "expected"), [((), "auto"), (('settings.options={"precision": "bf16"}',), "bf16")]
)
def test_weights_to_draw_with_are_read_in_the_precision_of_the_settings(
    declared: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: tuple[str, ...], expected: str
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(loading, "load", lambda card, **how: asked.append(how["precision"]) or Draughtsman())
    run_plan(plan_of(declared, overrides=overrides), out=tmp_path, device="cpu", listener=Silent())
    assert asked == [expected]


def test_weights_to_train_are_read_in_float32(
    declared: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def load(card: Any, **how: Any) -> Any:
        asked.append(how["precision"])
        raise PrerequisiteError("enough seen")

    monkeypatch.setattr(loading, "load", load)
    run_plan(plan_of(declared, methods=("sft",)), out=tmp_path, device="cpu", listener=Silent())
    assert asked == ["fp32"]


def test_each_seed_is_a_run_of_its_own(declared: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes = run(monkeypatch, plan_of(declared, seeds=(0, 1)), tmp_path, Draughtsman())
    assert [outcome.result.seeds for outcome in outcomes if outcome.result] == [(0,), (1,)]
    assert len({outcome.folder for outcome in outcomes}) == 2


def test_a_folder_that_another_process_holds_stops_the_run_before_anything_is_done(
    declared: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, backbone = plan_of(declared, seeds=(0, 1)), Draughtsman()
    with (
        run_lock(tmp_path / plan.stages[1].folder),
        pytest.raises(PrerequisiteError, match=r"at work in .* \(process \d+"),
    ):
        run(monkeypatch, plan, tmp_path, backbone)
    assert backbone.num_drawn == 0


def test_a_folder_is_free_again_after_the_run(
    declared: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (outcome,) = run(monkeypatch, plan_of(declared), tmp_path, Draughtsman())
    with run_lock(outcome.folder):
        pass


@pytest.mark.parametrize(("old", "new", "is_reused"), [("Read an image whole", "Take", True), ('"RGB"', '"L"', False)])
def test_a_result_of_code_that_reads_pictures_otherwise_is_not_reused(
    declared: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str, is_reused: bool
) -> None:
    (first,) = run(monkeypatch, plan_of(declared), tmp_path, Draughtsman())
    for folder in (first.folder / "responses", first.folder / "evals" / "geneval"):
        code = read_code(folder)
        assert code is not None and old in code.sources["segros_eval.benchmarks.images"]
        # As if the present code had been edited since.
        other = {
            **code.sources,
            "segros_eval.benchmarks.images": code.sources["segros_eval.benchmarks.images"].replace(old, new),
        }
        write_code(folder, Code(other))
    draughtsman, watcher = Draughtsman(), Watcher()
    (again,) = run(monkeypatch, plan_of(declared), tmp_path, draughtsman, watcher)
    assert again.reused == is_reused
    assert draughtsman.num_drawn == (0 if is_reused else cli_world.NUM_IMAGES)
    assert any("segros_eval.benchmarks.images" in note for note in watcher.notes) != is_reused


def test_by_key_a_result_of_other_code_is_taken_and_said(
    declared: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (first,) = run(monkeypatch, plan_of(declared), tmp_path, Draughtsman())
    write_code(first.folder / "evals" / "geneval", Code({"gone": "x = 1"}))
    watcher = Watcher()
    (again,) = run(monkeypatch, plan_of(declared, reuse="key"), tmp_path, Draughtsman(), watcher)
    assert again.reused and any("--reuse key" in note for note in watcher.notes)
