"""Bad input ends with one clear message and the right exit code, without a traceback, and loses nothing."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import cli_world
import pytest
from typer.testing import CliRunner, Result

from segros_eval.cli import app
from segros_eval.pipeline.lock import run_lock

Segros = Callable[..., Result]
RUN = ("run", "--method", "none", "--backbone", "micro", "--eval", "geneval")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[cli_world.World]:
    """Yield a world with one finished run, its checkpoint's run, and its images in the official layout."""
    world = cli_world.build(tmp_path_factory.mktemp("world"))
    with pytest.MonkeyPatch.context() as patch:
        world.enter(patch)
        for arguments in (
            (*RUN,),
            ("train", "--method", "sft", "--backbone", "micro", "--set", "optimizer_steps=1"),
            ("export", "{none}", "--format", "geneval", "--to", "images"),
        ):
            folder = next((world.folder / "runs").glob("none-*"), None)
            done = CliRunner().invoke(app.app, [argument.format(none=folder) for argument in arguments])
            assert done.exit_code == 0, done.stderr
    yield world


@pytest.fixture
def segros(world: cli_world.World, monkeypatch: pytest.MonkeyPatch) -> Segros:
    world.enter(monkeypatch)
    return lambda *arguments: CliRunner().invoke(app.app, [str(argument) for argument in arguments])


@pytest.fixture
def checkpoint(world: cli_world.World, tmp_path: Path) -> Path:
    """Return a copy of a trained run's checkpoint folder."""
    source = next((world.folder / "runs").glob("sft-*/train/checkpoints/step-*"))
    return Path(shutil.copytree(source, tmp_path / source.name))


@pytest.fixture
def images(world: cli_world.World, tmp_path: Path) -> Path:
    """Return a copy of a complete folder of images in the official layout."""
    return Path(shutil.copytree(world.folder / "images", tmp_path / "images"))


def digest(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def assert_refused(done: Result, *words: str, code: int = 2) -> None:
    assert done.exit_code == code, done.output
    assert "Traceback" not in done.output
    told = " ".join(done.stderr.split())
    for word in words:
        assert word in told, f"{word!r} is not in {told!r}"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("--method", "nnoe"), ("Unknown method 'nnoe'", "Did you mean 'none'")),
        (("--backbone", "mikro"), ("Unknown backbone 'mikro'", "Did you mean 'micro'")),
        (("--eval", "genval"), ("Unknown evaluator 'genval'", "Did you mean 'geneval'")),
        (("--eval", "photos-only"), ("runs in 'photo'", "draws 'shapes'")),
        (("--set", "images_per_promt=2"), ("no field 'images_per_promt'", "Did you mean 'images_per_prompt'")),
        (("--set", "images_per_prompt=two"), ("a whole number", "'two'")),
        (("--set", "images_per_prompt=0"), ("at least 1",)),
        (("--set", "images_per_prompt"), ("field=value",)),
        (("--method", "sft", "--set", "batch_size=1"), ("ambiguous", "recipe.batch_size")),
        (("--method", "sft", "--data", "photos"), ("Data of its world: shapes",)),
        (("--method", ""), ("--method names nothing",)),
        (("--seed", "one"), ("--seed takes whole numbers",)),
        (("--seed", "-1"), ("--seed takes whole numbers",)),
        (("--limit", "0"), ("--limit",)),
        (("--device", "warp"), ("--device takes",)),
    ],
)
def test_a_wrong_option_is_refused_with_what_is_right(
    segros: Segros, world: cli_world.World, change: tuple[str, ...], words: tuple[str, ...]
) -> None:
    before = digest(world.folder / "runs")
    assert_refused(segros(*RUN, *change), *words)
    assert digest(world.folder / "runs") == before


def test_several_mistakes_are_told_at_once(segros: Segros) -> None:
    done = segros("run", "--method", "nnoe", "--backbone", "mikro", "--eval", "genval", "--set", "x=1")
    assert_refused(done, "'nnoe'", "'mikro'", "'genval'", "'x'")


def test_an_option_that_does_not_exist_is_refused(segros: Segros) -> None:
    assert_refused(segros(*RUN, "--metod", "none"), "No such option")


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/segros", "x" * 300, "x" * 300 + "/below"])
def test_an_output_folder_that_cannot_be_written_is_refused(segros: Segros, tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("in the way")
    assert_refused(segros(*RUN, "--out", tmp_path / place), "Cannot write to", "--out")
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_second_segros_in_the_same_run_folder_is_refused(segros: Segros, world: cli_world.World) -> None:
    folder = next((world.folder / "runs").glob("none-*"))
    before = digest(folder)
    with run_lock(folder):
        assert_refused(segros(*RUN), "Another segros is at work", "process")
    assert digest(folder) == before
    assert segros(*RUN).exit_code == 0


def test_a_folder_that_is_no_checkpoint_is_refused(segros: Segros, tmp_path: Path) -> None:
    assert_refused(segros("eval", "--checkpoint", tmp_path, "--eval", "geneval"), "no checkpoint", "config.json")
    assert_refused(segros("eval", "--checkpoint", tmp_path / "nowhere", "--eval", "geneval"), "no checkpoint")


@pytest.mark.parametrize("num_bytes", [0, 5, 1000])
def test_a_truncated_checkpoint_is_refused(segros: Segros, checkpoint: Path, num_bytes: int) -> None:
    weights = checkpoint / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:num_bytes])
    done = segros("eval", "--checkpoint", checkpoint, "--eval", "geneval", "--method", "sft")
    assert_refused(done, "Cannot read the weights")


def test_a_checkpoint_of_another_model_is_refused(segros: Segros, checkpoint: Path) -> None:
    import torch
    from safetensors.torch import save_file

    save_file({"encoder.weight": torch.zeros(3)}, checkpoint / "model.safetensors")
    done = segros(
        "eval", "--checkpoint", checkpoint, "--eval", "geneval", "--method", "sft", "--out", checkpoint / "runs"
    )
    assert_refused(done, "does not fit", code=1)


@pytest.mark.parametrize("config", ['{"model_type": "qwen2"}', "not json", "[1]"])
def test_a_foreign_checkpoint_is_refused(segros: Segros, checkpoint: Path, config: str) -> None:
    (checkpoint / "config.json").write_text(config)
    done = segros("eval", "--checkpoint", checkpoint, "--eval", "geneval", "--method", "sft")
    assert_refused(done, "config.json")


def test_a_checkpoint_outside_a_run_folder_needs_its_methods_name(segros: Segros, checkpoint: Path) -> None:
    assert_refused(segros("eval", "--checkpoint", checkpoint, "--eval", "geneval"), "--method")


@pytest.mark.parametrize("plan", ["{}", '{"task": null}', "[]", "torn"])
def test_a_foreign_plan_beside_a_checkpoint_is_refused(segros: Segros, checkpoint: Path, plan: str) -> None:
    (checkpoint.parent / "plan.json").write_text(plan)
    assert_refused(segros("eval", "--checkpoint", checkpoint, "--eval", "geneval"), "plan.json")


def test_a_damaged_result_is_made_again_from_what_was_drawn(segros: Segros, world: cli_world.World) -> None:
    result = next((world.folder / "runs").glob("none-*/evals/geneval/result.json"))
    before = json.loads(result.read_text())
    result.write_text("torn")
    done = segros(*RUN, "--json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(result.read_text())["metrics"] == before["metrics"]
    assert "draw " not in done.stderr


def test_a_corrupted_image_is_unscored_and_named(segros: Segros, images: Path) -> None:
    (images / "00003" / "samples" / "00001.png").write_bytes(b"\x89PNG torn")
    done = segros("score", "geneval", "--images", images, "--json")
    assert_refused(done, "00003/samples/00001.png", code=1)
    (cell,) = json.loads(done.stdout)["cells"]
    assert (cell["num_samples"], cell["num_unscored"]) == (cli_world.NUM_IMAGES - 1, 1)


def test_an_incomplete_set_is_scored_as_far_as_it_goes_and_what_lacks_is_named(segros: Segros, images: Path) -> None:
    shutil.rmtree(images / "00004")
    (images / "00005" / "samples" / "00000.png").unlink()
    done = segros("score", "geneval", "--images", images, "--json")
    assert_refused(done, "missing prompt", "too few images", code=1)
    (cell,) = json.loads(done.stdout)["cells"]
    assert (cell["num_samples"], cell["num_unscored"]) == (cli_world.NUM_IMAGES - 3, 3)


def test_an_allowed_share_of_unscored_images_ends_well(segros: Segros, images: Path) -> None:
    (images / "00003" / "samples" / "00001.png").write_bytes(b"")
    assert segros("score", "geneval", "--images", images, "--max-unscored", "0.05").exit_code == 0
    assert segros("score", "geneval", "--images", images, "--max-unscored", "0.04").exit_code == 1


@pytest.mark.parametrize("name", ["nowhere", "empty"])
def test_a_folder_without_images_is_refused(segros: Segros, tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    for world in ((), ("--world", "shapes")):
        done = segros("score", "geneval", "--images", tmp_path / name, *world)
        assert_refused(done, name, "GenEval's layout")


def test_the_world_of_a_folder_is_told_by_any_of_its_prompts(segros: Segros, images: Path) -> None:
    (images / "00000" / "metadata.jsonl").write_text('{"tag": "colors", "prompt": "a photo of a holiday"}')
    assert_refused(segros("score", "geneval", "--images", images), "foreign prompt", "missing prompt", code=1)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("score", "genval", "--images", "images"), "Did you mean 'geneval'"),
        (("score", "geneval", "--images", "images", "--world", "mars"), "Unknown world 'mars'"),
        (("score", "geneval", "--images", "images", "--world", "photo"), "detector"),
        (("paper", "table-99"), "Unknown table"),
        (("data", "fetch", "genval"), "Unknown benchmark"),
        (("leaderboard", "--format", "pdf"), "'pdf' is not one of 'md', 'html'"),
        (("leaderboard",), "no leaderboard"),
        (("compare", "nowhere", "runs"), "no run folder"),
        (("report", "nowhere"), "no run folder"),
        (("export", "nowhere"), "no checkpoint"),
        (("explain", "--backbone", "micro", "--image", "nowhere.png", "--caption", "x"), "nowhere.png"),
        (
            ("explain", "--backbone", "micro", "--image", "x.png", "--caption", "x", "--device", "warp"),
            "--device takes",
        ),
        (("explain", "--backbone", "mikro", "--image", "x.png", "--caption", "x"), "Did you mean 'micro'"),
    ],
)
def test_every_other_command_refuses_what_it_cannot_use(segros: Segros, arguments: tuple[str, ...], word: str) -> None:
    assert_refused(segros(*arguments), word)


def test_declarations_that_cannot_be_read_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = cli_world.declare(tmp_path)
    (tasks / "train" / "mine.py").write_text("from segros_train.method import TrainTask\nmine = TrainTask(nam='x')\n")
    monkeypatch.setattr("segros_eval.pipeline.catalog.find_tasks", lambda: tasks)
    assert_refused(CliRunner().invoke(app.app, ["list"]), "mine.py", "nam")


def test_the_real_command_ends_with_two_and_a_single_message(world: cli_world.World) -> None:
    done = world.segros("run", "--method", "nnoe", "--backbone", "micro", "--eval", "geneval")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("Error: Unknown method 'nnoe'") and len(done.stderr.strip().splitlines()) == 1
