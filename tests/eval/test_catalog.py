"""The catalog reads declarations by path, and says what is wrong with them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import cli_world
import pytest

from segros_eval.pipeline.catalog import added_tasks, find_tasks, load_catalog
from segros_train.errors import PrerequisiteError


def test_every_kind_of_declaration_is_collected_by_name(tmp_path: Path) -> None:
    found = load_catalog(cli_world.declare(tmp_path))
    assert list(found.backbones) == ["micro"]
    assert set(found.methods) == {"none", "sft", "segros", "segros-noise-0"}
    assert set(found.evaluators) == {"geneval", "photos-only"}
    assert set(found.data) == {"shapes", "photos"}
    assert set(found.recipes) == {"micro"}


def test_all_methods_leaves_ablations_out(tmp_path: Path) -> None:
    assert load_catalog(cli_world.declare(tmp_path)).main_methods == ("none", "sft", "segros")


def test_two_values_of_one_name_are_refused_with_both_files(tmp_path: Path) -> None:
    tasks = cli_world.declare(tmp_path)
    (tasks / "train" / "more.py").write_text(
        "from segros_train.method import TrainTask\nagain = TrainTask(name='sft', title='SFT', method=None)\n"
    )
    with pytest.raises(PrerequisiteError, match=r"Two methods are called 'sft'.*methods\.py.*more\.py"):
        load_catalog(tasks)


def test_a_value_that_another_file_imports_is_declared_once(tmp_path: Path) -> None:
    tasks = cli_world.declare(tmp_path)
    (tasks / "train" / "aaa.py").write_text("from .methods import sft\n")
    assert "aaa" not in {stem for stem, names in load_catalog(tasks).groups.items() if names}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("x = (", "line 1"),
        ("from nowhere import something", "nowhere"),
        ("from segros_train.types import Recipe\nRECIPES = {'a': Recipe(optimiser_steps=1)}", "optimiser_steps"),
        ("x = undefined", "undefined"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_the_reason(tmp_path: Path, text: str, reason: str) -> None:
    tasks = cli_world.declare(tmp_path)
    (tasks / "broken.py").write_text(text)
    with pytest.raises(PrerequisiteError, match=rf"broken\.py.*{reason}"):
        load_catalog(tasks)


def test_a_folder_that_one_merely_stands_in_is_never_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = cli_world.declare(tmp_path)
    (tasks / "backbones.py").write_text("raise SystemExit('executed')\n")
    monkeypatch.chdir(tmp_path)
    assert find_tasks() == Path(__file__).parents[2] / "tasks"
    assert "micro" not in load_catalog().backbones


def test_a_folder_is_added_to_the_projects_own(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from segros_train.method import TrainTask\nmine = TrainTask(name='mine', title='Mine', method=None)\n"
    )
    found = load_catalog(find_tasks(), tmp_path)
    assert {"mine", "segros"} <= set(found.main_methods) and found.sources == (find_tasks(), tmp_path)


def test_an_installed_package_adds_the_tasks_that_its_entry_point_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "__init__.py").touch()
    (tmp_path / "theirs" / "mine.py").write_text(
        "from segros_train.method import TrainTask\nmine = TrainTask(name='mine', title='Mine', method=None)\n"
    )
    about = tmp_path / "theirs-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[segros.tasks]\ntheirs = theirs\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert added_tasks() == (tmp_path / "theirs",)
    assert "mine" in load_catalog().methods


def test_a_folder_that_declares_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PrerequisiteError, match="declares nothing"):
        load_catalog(find_tasks(), tmp_path)


def test_reading_the_declarations_imports_no_torch_and_no_package_called_tasks() -> None:
    code = (
        "import sys; from segros_eval.pipeline.catalog import load_catalog; load_catalog(); "
        "print(sorted({'torch', 'transformers', 'numpy', 'tasks'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
