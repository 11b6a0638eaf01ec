"""The command line as a user meets it, on a real Harmon of a few thousand weights."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cli_world
import pytest
from typer.testing import CliRunner, Result

from segros_eval.cli import app

Segros = Callable[..., Result]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> cli_world.World:
    return cli_world.build(tmp_path_factory.mktemp("world"))


@pytest.fixture
def segros(world: cli_world.World, monkeypatch: pytest.MonkeyPatch) -> Segros:
    """Return a caller of the command line, in the world's working directory."""
    world.enter(monkeypatch)
    return lambda *arguments: CliRunner().invoke(app.app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def ran(world: cli_world.World) -> Path:
    """Return the folder of a run of two methods, made by the real command in a process of its own."""
    done = world.segros("run", "--method", "none,sft", "--backbone", "micro", "--eval", "geneval", "--json")
    assert done.returncode == 0, done.stderr
    (world.folder / "document.json").write_text(done.stdout)
    return world.folder / "runs"


def run_folder(runs: Path, method: str) -> Path:
    cells = json.loads((runs.parent / "document.json").read_text())["cells"]
    (folder,) = (cell["folder"] for cell in cells if cell["method"] == method)
    return runs.parent / folder


@pytest.mark.parametrize("arguments", [["--help"], ["list"], ["run", "--help"]])
def test_help_and_list_import_no_torch(arguments: list[str], world: cli_world.World) -> None:
    code = (
        "import sys\nsys.argv[1:] = " + repr(arguments) + "\nfrom segros_eval.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert end.code in (0, None)\n"
        "assert not {'torch', 'transformers', 'numpy', 'PIL'} & set(sys.modules), 'imported what is slow'"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=world.folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


EMPTY_PROGRAM = """
import typer
app = typer.Typer()
@app.command()
def show(flag: bool = False) -> None: ...
app()
"""


def computing(command: list[str], folder: Path) -> float:
    """Return the least seconds of computing of three runs."""
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, cwd=folder, capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(seconds)


def test_listing_takes_at_most_a_quarter_second_more_than_an_empty_typer_program(world: cli_world.World) -> None:
    ours = computing([sys.executable, "command.py", "list"], world.folder)
    empty = computing([sys.executable, "-c", EMPTY_PROGRAM], world.folder)
    assert ours - empty < 0.25


def test_json_is_one_document_with_numbers_intervals_counts_keys_and_provenance(
    ran: Path, world: cli_world.World
) -> None:
    cells = json.loads((world.folder / "document.json").read_text())["cells"]
    assert [(cell["method"], cell["status"]) for cell in cells] == [("none", "scored"), ("sft", "scored")]
    for cell in cells:
        assert len(cell["key"]) == 64 and cell["num_samples"] == cli_world.NUM_IMAGES and cell["num_unscored"] == 0
        assert set(cell["metrics"]) >= {"overall", "single_object", "color_attr"}
        assert cell["intervals"]["overall"]["low"] <= cell["metrics"]["overall"] <= cell["intervals"]["overall"]["high"]
        assert cell["provenance"]["versions"]["torch"] and cell["world"] == "shapes"
    assert cells[1]["provenance"]["training"]["num_samples"] == 2 * (2 + 2)
    assert cells[0]["key"] != cells[1]["key"]


def test_a_second_run_finds_everything_done_and_shows_the_papers_columns(segros: Segros, ran: Path) -> None:
    shown = segros("run", "--method", "none,sft", "--backbone", "micro", "--eval", "geneval")
    assert shown.exit_code == 0, shown.stderr
    for word in ("Single", "Two", "Count", "Color", "Position", "Attr.", "Overall [95%]", "Unscored"):
        assert word in shown.stdout
    assert "w/o SFT" in shown.stdout and "SFT" in shown.stdout and "embedded world" in shown.stdout
    assert "draw" not in shown.stderr and "train" not in shown.stderr
    assert max(map(len, shown.stdout.splitlines())) <= 100


def test_a_run_writes_a_leaderboard(ran: Path) -> None:
    text = (ran / "leaderboard.md").read_text()
    assert "micro" in text and "Overall" in text


def test_a_limit_marks_the_result_as_a_subset(segros: Segros, ran: Path, tmp_path: Path) -> None:
    done = segros(
        "run", "--method", "none", "--backbone", "micro", "--eval", "geneval", "--limit", 6, "--out", tmp_path
    )
    assert done.exit_code == 0, done.stderr
    assert "subset: 6 prompts" in " ".join(done.stdout.split())


def test_a_dry_run_counts_updates_samples_and_items_and_writes_nothing(segros: Segros, tmp_path: Path) -> None:
    done = segros(
        *("run", "--method", "all", "--backbone", "micro", "--eval", "geneval", "--dry-run", "--out", tmp_path / "runs")
    )
    assert done.exit_code == 0, done.stderr
    assert "Nothing is missing." in done.stdout and "3 models, 3 cells" in done.stdout
    assert str(cli_world.NUM_IMAGES) in done.stdout and not (tmp_path / "runs").exists()


def test_a_dry_run_with_json_holds_plan_and_cost(segros: Segros) -> None:
    done = segros("run", "--method", "sft", "--backbone", "micro", "--eval", "geneval", "--dry-run", "--json")
    document = json.loads(done.stdout)
    (stage,) = document["plan"]
    assert document["missing"] == [] and stage["recipe"]["optimizer_steps"] == 2
    assert stage["cost"]["num_responses"] == [cli_world.NUM_IMAGES] and stage["cost"]["num_samples"] == 8


def test_a_dry_run_without_weights_succeeds_and_names_them_a_run_is_refused(
    segros: Segros, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEGROS_HOME", str(tmp_path))
    wanted = ("run", "--method", "sft", "--backbone", "micro", "--eval", "geneval")
    dry, real = segros(*wanted, "--dry-run"), segros(*wanted, "--out", tmp_path / "runs")
    assert dry.exit_code == 0 and "model.pth" in dry.stdout and "hf download" in dry.stdout
    assert real.exit_code == 2 and "model.pth" in real.stderr and "tokenizer.json" in real.stderr
    assert not (tmp_path / "runs").exists()


def test_a_trained_checkpoint_is_evaluated_under_its_methods_name(segros: Segros, ran: Path, tmp_path: Path) -> None:
    document = json.loads((ran.parent / "document.json").read_text())
    done = segros("eval", "--checkpoint", run_folder(ran, "sft"), "--eval", "geneval", "--out", tmp_path, "--json")
    assert done.exit_code == 0, done.stderr
    (cell,) = json.loads(done.stdout)["cells"]
    assert cell["method"] == "sft" and cell["metrics"] == document["cells"][1]["metrics"]


def test_exported_images_score_as_they_did_in_the_run(segros: Segros, ran: Path, tmp_path: Path) -> None:
    run = run_folder(ran, "none")
    assert segros("export", run, "--format", "geneval", "--to", tmp_path / "images").exit_code == 0
    done = segros("score", "geneval", "--images", tmp_path / "images", "--json")
    assert done.exit_code == 0, done.stderr
    (cell,) = json.loads(done.stdout)["cells"]
    document = json.loads((ran.parent / "document.json").read_text())
    assert cell["metrics"] == document["cells"][0]["metrics"] and cell["world"] == "shapes"


def test_exported_weights_have_upstreams_names(segros: Segros, ran: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    target = tmp_path / "weights.safetensors"
    done = segros("export", run_folder(ran, "sft"), "--to", target)
    assert done.exit_code == 0, done.stderr
    assert {"mar.mask_token", "proj_in.0.weight"} <= set(load_file(target))


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("compare", "{none}", "{sft}"), "not distinguishable"),
        (("report", "{sft}", "--format", "md"), "geneval overall"),
        (("leaderboard", "--format", "csv"), "micro"),
        (("list",), "segros-noise-0"),
        (("doctor",), "ready    micro"),
    ],
)
def test_a_command_shows_what_there_is(segros: Segros, ran: Path, arguments: tuple[str, ...], word: str) -> None:
    folders = {method: str(run_folder(ran, method)) for method in ("none", "sft")}
    done = segros(*(argument.format(**folders) for argument in arguments))
    assert done.exit_code == 0, done.stderr
    assert word in done.stdout


@pytest.mark.parametrize("command", ["list", "doctor"])
def test_json_is_one_document_everywhere(segros: Segros, command: str) -> None:
    assert isinstance(json.loads(segros(command, "--json").stdout), dict)


def test_a_report_is_a_page_in_the_run_folder(segros: Segros, ran: Path) -> None:
    assert segros("report", run_folder(ran, "sft")).exit_code == 0
    assert "<html" in (run_folder(ran, "sft") / "report.html").read_text()


def test_an_explanation_is_a_png(segros: Segros, ran: Path, tmp_path: Path) -> None:
    image = next((run_folder(ran, "none") / "responses" / "images").glob("*.png"))
    done = segros(
        "explain", "--backbone", "micro", "--image", image, "--caption", "a red circle", "--out", tmp_path / "map.png"
    )
    assert done.exit_code == 0, done.stderr
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")


def test_training_alone_leaves_a_checkpoint_and_no_numbers(segros: Segros, tmp_path: Path) -> None:
    done = segros("train", "--method", "segros", "--backbone", "micro", "--out", tmp_path, "--set", "optimizer_steps=1")
    assert done.exit_code == 0, done.stderr
    (folder,) = tmp_path.glob("segros-micro-*")
    assert list(folder.glob("train/checkpoints/step-*/config.json")) and not (folder / "evals").exists()


def test_an_interrupted_run_says_so_in_a_line(segros: Segros, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*arguments: Any, **options: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("segros_eval.pipeline.catalog.load_catalog", interrupt)
    done = segros("list")
    assert done.exit_code == 130 and len(done.stderr.strip().splitlines()) == 1


def test_a_failed_cell_ends_with_one_and_a_line_in_the_table(
    segros: Segros, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from segros_train.errors import PrerequisiteError

    def fail(*arguments: Any) -> Any:
        raise PrerequisiteError("the loss is not finite at update 7")

    monkeypatch.setattr("segros_eval.pipeline.runner.train_stage", fail)
    done = segros(
        "run", "--method", "sft,none", "--backbone", "micro", "--eval", "geneval", "--out", tmp_path, "--limit", 6
    )
    assert done.exit_code == 1
    assert "update 7" in " ".join(done.stdout.split()) and "w/o SFT" in done.stdout


def test_a_table_of_the_paper_is_planned_for_any_backbone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app.app, ["paper", "table-1", "--backbone", "harmon-0.5b", "--dry-run"])
    assert done.exit_code == 0, done.stderr
    assert "4 models" in done.stdout and "harmon_0.5b.pth" in done.stdout
