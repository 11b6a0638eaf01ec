"""The tour shows the tree as it is, and what it tells to write is what the tests add from outside."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from typer.testing import CliRunner

from segros_eval.cli.app import app

ROOT = Path(__file__).parent.parent
TOUR = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
EXTEND = (ROOT / "docs" / "extend.md").read_text(encoding="utf-8")
FILE = re.compile(r"^`(\S+)`\n```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^```sh\nsegros (.*?)\n```$", re.MULTILINE)
PACKAGES = ("segros_train", "segros_eval")


def drawn() -> list[str]:
    """Return the paths in the tour's tree, in order."""
    tree = TOUR.partition("## The tree")[2].split("```")[1]
    return [line.split()[0].rstrip("/") for line in tree.strip().splitlines()]


@cache
def line_of(module: str) -> str:
    """Return the line of the tree that a module belongs to."""
    names = [path.removesuffix(".py").replace("/", ".") for path in drawn()]
    return max((name for name in names if f"{module}.".startswith(f"{name}.")), key=len)


def module_of(path: Path) -> str:
    return path.relative_to(ROOT).with_suffix("").as_posix().removesuffix("/__init__").replace("/", ".")


def imports(path: Path) -> Iterator[str]:
    """Yield what a file of ours imports of ours, by modules' or their members' names."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(PACKAGES):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith(PACKAGES))


def test_what_the_tree_shows_is_there() -> None:
    assert [path for path in drawn() if not (ROOT / path).exists()] == []


def test_the_tree_shows_every_package_of_ours_and_every_module_beside_them() -> None:
    folders = {path.parent for name in PACKAGES for path in (ROOT / name).rglob("__init__.py")}
    modules = {path for path in (ROOT / "segros_train").glob("*.py") if path.name != "__init__.py"}
    grouping = {ROOT / "segros_train" / "backbones"}
    expected = {path.relative_to(ROOT).as_posix() for path in (folders | modules) - grouping}
    assert sorted(expected - set(drawn())) == []


def test_a_line_of_the_tree_imports_itself_and_those_above_it() -> None:
    order = {path.removesuffix(".py").replace("/", "."): place for place, path in enumerate(drawn())}
    found = [
        (path.relative_to(ROOT).as_posix(), imported)
        for name in PACKAGES
        for path in sorted((ROOT / name).rglob("*.py"))
        for imported in imports(path)
        if order[line_of(imported)] > order[line_of(module_of(path))]
    ]
    assert found == []


def test_the_files_to_write_are_those_that_the_tests_add() -> None:
    blocks = FILE.findall(EXTEND)
    assert len(blocks) == EXTEND.count("```python") == 7
    for path, text in blocks:
        assert text == (ROOT / path).read_text(encoding="utf-8"), f"{path} is another one in docs/extend.md"


@pytest.mark.parametrize("command", COMMAND.findall(EXTEND))
def test_a_command_to_run_what_was_added_can_be_planned(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("SEGROS_HOME", str(tmp_path / "home"))
    done = CliRunner().invoke(app, [*shlex.split(command), "--dry-run", "--out", str(tmp_path / "runs")])
    assert done.exit_code == 0, done.output
    assert "Nothing is missing." in done.output
