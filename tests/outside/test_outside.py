"""Methods, benchmarks and families of backbones from outside the package: listed, run, and on a leaderboard."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from segros_eval.cli import app
from segros_eval.pipeline.catalog import find_tasks, load_catalog
from segros_eval.pipeline.keys import weights_digest
from segros_eval.pipeline.reuse import code_of, evaluation_modules, training_modules
from segros_train.files import file_sha256

HERE = Path(__file__).parent
METHOD, BENCHMARK, FAMILY = HERE / "method", HERE / "benchmark", HERE / "family"
MOST_FILES = {METHOD: 2, BENCHMARK: 2, FAMILY: 10}

Segros = Callable[..., str]


@pytest.fixture
def segros(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Segros:
    """Return a caller of the command line, in a folder of its own, that gives back standard output."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SEGROS_HOME", str(tmp_path / "home"))

    def call(*arguments: object) -> str:
        done = CliRunner().invoke(app.app, [str(argument) for argument in arguments])
        assert done.exit_code == 0, f"{done.output}\n{done.exception!r}"
        return done.stdout

    return call


def added(*folders: Path) -> list[object]:
    return [word for folder in folders for word in ("--tasks", folder)]


def rows_of_leaderboard(segros: Segros) -> list[dict[str, object]]:
    """Return the measured cells of the leaderboard of what was run."""
    cells = json.loads(segros("leaderboard", "--format", "json", "--folder", "none"))["cells"]
    return [cell for cell in cells if cell["source"] == "measured"]


@pytest.mark.parametrize("folder", MOST_FILES, ids=lambda folder: folder.name)
def test_what_is_added_takes_few_files(folder: Path) -> None:
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    assert len(files) <= MOST_FILES[folder]


@pytest.mark.parametrize(
    ("folder", "names"),
    [
        (METHOD, {"methods": ["random-hints"]}),
        (BENCHMARK, {"evaluators": ["plain-colors"]}),
        (FAMILY, {"backbones": ["pixels", "pixels-photo"], "recipes": ["pixels"]}),
    ],
    ids=["method", "benchmark", "family"],
)
def test_what_is_added_is_listed_beside_what_there_is(
    segros: Segros, folder: Path, names: dict[str, list[str]]
) -> None:
    before, after = (json.loads(segros("list", "--json", *given)) for given in ([], added(folder)))
    for section, listed in before.items():
        assert sorted(after[section].keys() - listed.keys()) == names.get(section, [])


def test_a_method_from_outside_trains_a_backbone_of_the_project_and_stands_on_the_leaderboard(segros: Segros) -> None:
    few = ("--limit", "2", "--set", "optimizer_steps=1", "--set", "recipe.batch_size=2", "--set", "num_steps=1")
    few = (*few, "--set", "i2t_batch_size=2", "--set", "warmup_steps=0")
    asked = ("--method", "random-hints", "--backbone", "show-o-tiny", "--eval", "compbench")
    (cell,) = json.loads(segros("run", *added(METHOD), *asked, *few, "--json"))["cells"]
    assert cell["status"] == "scored"
    assert cell["num_samples"] == 2
    assert cell["provenance"]["optimizer_steps"] == 1
    assert {row["method"] for row in rows_of_leaderboard(segros)} == {"random-hints"}
    assert "random-hints" in segros("leaderboard", "--format", "md", "--folder", "none")


def test_a_benchmark_of_photographs_from_outside_is_scored_and_has_a_table_of_its_own(segros: Segros) -> None:
    asked = ("--method", "none", "--backbone", "pixels-photo", "--eval", "plain-colors")
    (cell,) = json.loads(segros("run", *added(BENCHMARK, FAMILY), *asked, "--json"))["cells"]
    assert cell["status"] == "scored"
    assert (cell["num_samples"], cell["num_unscored"]) == (18, 0)
    assert list(cell["metrics"]) == ["accuracy", "red", "green", "blue"]
    (row,) = [row for row in rows_of_leaderboard(segros) if row["metric"] == "accuracy"]
    assert row["value"] == cell["metrics"]["accuracy"]
    assert "pixels-photo" in segros("leaderboard", "--format", "md", "--folder", "none")
    assert "accuracy" in segros("compare", *added(BENCHMARK), cell["folder"], cell["folder"])


def test_a_family_from_outside_is_trained_draws_answers_and_stands_on_the_leaderboard(segros: Segros) -> None:
    asked = ("--method", "none,sft,segros", "--backbone", "pixels", "--eval", "geneval,pope", "--limit", "6")
    cells = json.loads(segros("run", *added(FAMILY), *asked, "--json"))["cells"]
    assert [(cell["method"], cell["evaluator"], cell["status"]) for cell in cells] == [
        (method, benchmark, "scored") for method in ("none", "sft", "segros") for benchmark in ("geneval", "pope")
    ]
    rows = rows_of_leaderboard(segros)
    assert {(row["method"], row["backbone"]) for row in rows} == {
        (method, "pixels") for method in ("none", "sft", "segros")
    }


def test_a_checkpoint_of_a_family_from_outside_can_be_evaluated(segros: Segros, tmp_path: Path) -> None:
    segros("train", *added(FAMILY), "--method", "sft", "--backbone", "pixels")
    (run,) = (tmp_path / "runs").iterdir()
    asked = ("--checkpoint", run, "--eval", "geneval", "--limit", "6", "--json")
    (cell,) = json.loads(segros("eval", *added(FAMILY), *asked))["cells"]
    assert (cell["method"], cell["backbone"], cell["status"]) == ("sft", "pixels", "scored")


def test_all_that_is_added_runs_together(segros: Segros) -> None:
    asked = ("--method", "random-hints", "--backbone", "pixels", "--eval", "geneval", "--limit", "6")
    (cell,) = json.loads(segros("run", *added(METHOD, BENCHMARK, FAMILY), *asked, "--json"))["cells"]
    assert (cell["method"], cell["backbone"], cell["status"]) == ("random-hints", "pixels", "scored")


def test_the_weights_that_lie_beside_a_family_are_part_of_its_keys() -> None:
    card = load_catalog(find_tasks(), FAMILY).backbones["pixels"]
    found = weights_digest(card, None)
    folder = FAMILY / "weights" / "pixels"
    assert found == {path.name: file_sha256(path) for path in sorted(folder.iterdir())}
    assert len(found) == 3


def test_the_modules_beside_a_declaration_are_part_of_the_code_that_decides_on_reuse() -> None:
    catalog = load_catalog(find_tasks(), METHOD, BENCHMARK, FAMILY)
    card, method = catalog.backbones["pixels"], catalog.methods["random-hints"].method
    evaluator = catalog.evaluators["plain-colors"].evaluator
    code = code_of(*training_modules(card, method), *evaluation_modules(evaluator))
    for name in ("random_hints", "plain_colors", "pixels.config", "pixels.loading", "pixels.adapter"):
        assert [module for module in code.sources if module.endswith(f".{name}")] != [], name
