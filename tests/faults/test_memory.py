"""Memory that runs out costs a cell one sentence, never the command, the other cells, a picture or a number."""

from __future__ import annotations

import json
import shutil
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cli_world
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

from segros_eval.benchmarks.geneval.benchmark import GenEval
from segros_eval.cli import app
from segros_train.backbones import loading
from segros_train.backbones.harmon.adapter import Harmon

Segros = Callable[..., Result]
RUN = ("run", "--backbone", "micro", "--eval", "geneval")
ABSURD = 10**14
"""Bytes that no machine has; asking for them raises what a CPU raises when its memory is used up."""


def gpu_shortage() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 12.00 GiB. GPU 0 has 79.18 GiB in all.")


def cpu_shortage() -> None:
    torch.empty(ABSURD, dtype=torch.uint8)


SHORTAGES = pytest.mark.parametrize(
    ("run_out", "found"),
    [(gpu_shortage, "on the GPU (12.00 GiB at once)"), (cpu_shortage, "on the CPU (93132.26 GiB at once)")],
    ids=["gpu", "cpu"],
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> cli_world.World:
    """Return a world with a run of `none` and `sft` that nothing disturbed."""
    world = cli_world.build(tmp_path_factory.mktemp("world"))
    with pytest.MonkeyPatch.context() as patch:
        world.enter(patch)
        done = CliRunner().invoke(app.app, [*RUN, "--method", "none,sft", "--out", "undisturbed"])
    assert done.exit_code == 0, done.output
    return world


@pytest.fixture
def segros(world: cli_world.World, monkeypatch: pytest.MonkeyPatch) -> Iterator[Segros]:
    """Yield the command; its runs are cleared away afterwards."""
    world.enter(monkeypatch)
    yield lambda *arguments: CliRunner().invoke(app.app, [*map(str, arguments), "--out", "runs"])
    shutil.rmtree(world.folder / "runs", ignore_errors=True)


def crowd_drawing(patch: pytest.MonkeyPatch, run_out: Callable[[], None], *, holds: int) -> list[int]:
    """Let drawing run out of memory beyond some images at once; return the batches it is asked for, as they come."""
    batches: list[int] = []
    generate = Harmon.generate

    def cramped(backbone: Harmon, prompts: Sequence[str], **more: Any) -> Iterator[Image.Image]:
        batches.append(len(prompts))
        if len(prompts) > holds:
            run_out()
        return generate(backbone, prompts, **more)

    patch.setattr(Harmon, "generate", cramped)
    return batches


def told(done: Result) -> str:
    assert "Traceback" not in done.output
    return " ".join(done.stderr.split())


def numbers(folder: Path) -> dict[str, Any]:
    """Return what a run's folder says of its pictures and scores, times and places left out."""
    pictures = {path.name: path.read_bytes() for path in (folder / "responses" / "images").glob("*.png")}
    result = json.loads((folder / "evals" / "geneval" / "result.json").read_text())
    scores = (folder / "evals" / "geneval" / "scores.jsonl").read_text()
    return {"pictures": pictures, "metrics": result["metrics"], "key": result["key"], "scores": scores}


def only(world: cli_world.World, out: str, method: str) -> Path:
    (folder,) = (world.folder / out).glob(f"{method}-micro-*")
    return folder


@pytest.mark.parametrize("run_out", [gpu_shortage, cpu_shortage], ids=["gpu", "cpu"])
def test_a_draw_that_runs_out_of_memory_goes_on_in_smaller_batches_to_the_same_pictures_and_scores(
    world: cli_world.World, segros: Segros, monkeypatch: pytest.MonkeyPatch, run_out: Callable[[], None]
) -> None:
    by_twos = [*RUN, "--method", "none", "--set", "settings.batch_size=2", "--out", f"by-twos-{run_out.__name__}"]
    assert CliRunner().invoke(app.app, by_twos).exit_code == 0
    batches = crowd_drawing(monkeypatch, run_out, holds=3)
    done = segros(*RUN, "--method", "none")
    assert done.exit_code == 0, done.output
    assert batches == [8, 4] + [2] * (cli_world.NUM_IMAGES // 2)
    disturbed, undisturbed = (numbers(only(world, out, "none")) for out in ("runs", by_twos[-1]))
    assert len(disturbed["pictures"]) == cli_world.NUM_IMAGES
    assert disturbed == undisturbed


@SHORTAGES
def test_a_training_that_runs_out_of_memory_says_what_to_change_and_the_other_cells_are_scored(
    world: cli_world.World, segros: Segros, monkeypatch: pytest.MonkeyPatch, run_out: Callable[[], None], found: str
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Harmon, "t2i_loss", lambda *_, **__: run_out())
        done = segros(*RUN, "--method", "sft,none")
    assert done.exit_code == 1
    sentence = (
        f"Training needs more memory than there is {found}: take --set recipe.accumulation=2 --set "
        "recipe.batch_size=1, or another device with --device."
    )
    assert told(done).count(sentence) == 1
    assert numbers(only(world, "runs", "none")) == numbers(only(world, "undisturbed", "none"))
    assert not list(only(world, "runs", "sft").glob("evals/*/result.json"))
    again = segros(*RUN, "--method", "sft,none")
    assert again.exit_code == 0, again.output
    assert numbers(only(world, "runs", "sft")) == numbers(only(world, "undisturbed", "sft"))


@SHORTAGES
def test_a_model_whose_training_ran_out_of_memory_is_gone_before_the_next_is_loaded(
    segros: Segros, monkeypatch: pytest.MonkeyPatch, run_out: Callable[[], None], found: str
) -> None:
    loaded, alive = list[weakref.ref[Any]](), list[int]()
    load = loading.load

    def watched(*given: Any, **how: Any) -> Any:
        alive.append(sum(one() is not None for one in loaded))
        backbone = load(*given, **how)
        loaded.append(weakref.ref(backbone))
        return backbone

    monkeypatch.setattr(loading, "load", watched)
    monkeypatch.setattr(Harmon, "t2i_loss", lambda *_, **__: run_out())
    done = segros(*RUN, "--method", "sft,segros,none")
    assert done.exit_code == 1 and told(done).count(found) == 2
    assert alive == [0, 0, 0]


@SHORTAGES
def test_scoring_that_runs_out_of_memory_keeps_the_pictures_and_is_repeated_without_drawing(
    world: cli_world.World, segros: Segros, monkeypatch: pytest.MonkeyPatch, run_out: Callable[[], None], found: str
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(GenEval, "score", lambda *_: run_out())
        done = segros(*RUN, "--method", "none")
    assert done.exit_code == 1
    assert told(done).count(f"The evaluation needs more memory than there is {found}: end other programs") == 1
    batches = crowd_drawing(monkeypatch, run_out, holds=0)
    assert segros(*RUN, "--method", "none").exit_code == 0
    assert batches == []
    assert numbers(only(world, "runs", "none")) == numbers(only(world, "undisturbed", "none"))


@SHORTAGES
def test_memory_that_does_not_hold_one_image_fails_the_cell_alone_and_keeps_what_was_drawn(
    world: cli_world.World, segros: Segros, monkeypatch: pytest.MonkeyPatch, run_out: Callable[[], None], found: str
) -> None:
    with monkeypatch.context() as patch:
        generate, calls = Harmon.generate, list[int]()

        def failing(backbone: Harmon, prompts: Sequence[str], **more: Any) -> Iterator[Image.Image]:
            calls.append(len(prompts))
            if len(calls) in range(2, 6):  # After one batch of eight, not even single images.
                run_out()
            return generate(backbone, prompts, **more)

        patch.setattr(Harmon, "generate", failing)
        done = segros(*RUN, "--method", "none,sft")
    assert calls[:5] == [8, 8, 4, 2, 1]
    assert done.exit_code == 1
    assert told(done).count(f"Drawing one image at a time needs more memory than there is {found}: end other") == 1
    assert len(list((only(world, "runs", "none") / "responses" / "images").glob("*.png"))) == 8
    assert numbers(only(world, "runs", "sft")) == numbers(only(world, "undisturbed", "sft"))
    batches = crowd_drawing(monkeypatch, run_out, holds=8)
    assert segros(*RUN, "--method", "none").exit_code == 0
    assert sum(batches) == cli_world.NUM_IMAGES - 8
    assert numbers(only(world, "runs", "none")) == numbers(only(world, "undisturbed", "none"))


@SHORTAGES
def test_weights_that_memory_does_not_hold_are_not_called_damaged(
    segros: Segros, monkeypatch: pytest.MonkeyPatch, run_out: Callable[[], None], found: str
) -> None:
    monkeypatch.setattr(torch, "load", lambda *_, **__: run_out())
    done = segros(*RUN, "--method", "none")
    assert done.exit_code == 1
    assert told(done).count(f"Loading the weights needs more memory than there is {found}: end other") == 1
    assert "Cannot read" not in told(done)


@SHORTAGES
def test_a_command_without_cells_says_it_in_a_sentence_too(
    world: cli_world.World, monkeypatch: pytest.MonkeyPatch, run_out: Callable[[], None], found: str
) -> None:
    world.enter(monkeypatch)
    monkeypatch.setattr("segros_train.backbones.loading.load", lambda *_, **__: run_out())
    checkpoint = next(only(world, "undisturbed", "sft").glob("train/checkpoints/step-*"))
    done = CliRunner().invoke(app.app, ["export", str(checkpoint)])
    assert done.exit_code == 1
    assert told(done).count(f"This command needs more memory than there is {found}: end other programs there") == 1
