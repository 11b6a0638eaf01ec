"""Declarations are values: the syntax tree of `tasks/` holds imports and assignments, nothing that runs."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

TASKS = Path(__file__).parent.parent / "tasks"
FILES = sorted(TASKS.rglob("*.py"))
STATEMENTS = (ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign)
RUNS = (
    ast.Lambda,
    ast.ListComp,
    ast.SetComp,
    ast.DictComp,
    ast.GeneratorExp,
    ast.Await,
    ast.Yield,
    ast.IfExp,
    ast.NamedExpr,
)
FORBIDDEN_IMPORTS = {"torch", "numpy", "os", "pathlib", "sys", "subprocess", "transformers"}


def is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def faults_of(text: str) -> list[str]:
    """Return what in a file is neither import nor assignment of a value."""
    tree = ast.parse(text)
    faults = [
        f"line {node.lineno}: {type(node).__name__}"
        for node in tree.body
        if not isinstance(node, STATEMENTS) and not is_docstring(node)
    ]
    imported: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, RUNS):
            faults.append(f"line {node.lineno}: {type(node).__name__}")
        if isinstance(node, ast.ImportFrom):
            imported |= {alias.asname or alias.name for alias in node.names}
            faults += [f"line {node.lineno}: import {node.module}"] * (
                (node.module or "").split(".")[0] in FORBIDDEN_IMPORTS
            )
        if isinstance(node, ast.Import):
            faults.append(f"line {node.lineno}: import of a whole module")
    makers = imported_makers(imported) | partial_makers(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and not (isinstance(node.func, ast.Name) and node.func.id in makers):
            faults.append(f"line {node.lineno}: call of {ast.unparse(node.func)}")
    return faults


def imported_makers(imported: set[str]) -> set[str]:
    """Return what makes a value when called: imported classes, and copies and templates of their values."""
    return {name for name in imported if name in ("partial", "replace") or name[0].isupper()}


def partial_makers(tree: ast.Module) -> set[str]:
    """Return the names that the file gives to templates (`partial`) of values."""
    return {
        target.id
        for node in tree.body
        if isinstance(node, ast.Assign)
        and isinstance(node.value, ast.Call)
        and ast.unparse(node.value.func) == "partial"
        for target in node.targets
        if isinstance(target, ast.Name)
    }


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(TASKS).as_posix())
def test_a_declaration_file_holds_only_imports_and_assignments(path: Path) -> None:
    assert faults_of(path.read_text(encoding="utf-8")) == []


def test_there_are_declarations() -> None:
    assert {"backbones.py", "data.py", "recipes.py"} <= {path.name for path in FILES}


@pytest.mark.parametrize(
    "text",
    [
        "def f(): pass",
        "for x in (): pass",
        "x = [y for y in (1, 2)]",
        "x = open('f')",
        "import torch",
        "from os import environ",
        "x = (lambda: 1)()",
        "if True:\n    x = 1",
        "print('hello')",
    ],
)
def test_a_file_that_runs_something_is_found_out(text: str) -> None:
    assert faults_of(text)
