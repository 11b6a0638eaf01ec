"""What can be run: the values declared below a `tasks/` folder.

Declarations are frozen values (`BackboneCard`, `TrainTask`, `EvalTask`, `DataCard`, `PaperTable`, `BenchmarkData`,
and recipes in a mapping called `RECIPES`). The folder is loaded by path under a private module name, so that a copy
in the working directory, the repository's and the one inside the wheel never meet. No torch is imported here.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from segros_eval.benchmarks.base import EvalTask
from segros_eval.benchmarks.fetch import BenchmarkData
from segros_eval.pipeline.paper import PaperTable
from segros_train.errors import PrerequisiteError
from segros_train.method import TrainTask
from segros_train.types import BackboneCard, DataCard, Recipe

__all__ = ["Catalog", "find_tasks", "load_catalog"]

PACKAGE = Path(__file__).parent.parent
KINDS: Mapping[type, str] = {
    BackboneCard: "backbones",
    TrainTask: "methods",
    EvalTask: "evaluators",
    DataCard: "data",
    PaperTable: "tables",
    BenchmarkData: "benchmarks",
}
SET_ASIDE = ("ablations", "pretrain")
"""Files of `tasks/train` that `all` leaves out: they are asked for by name, or all together by the file's name."""


@dataclass(frozen=True)
class Catalog:
    """Everything declared, by name.

    Attributes:
        source: The folder the declarations were read from.
        backbones: Cards.
        methods: Ways to fine-tune.
        evaluators: Evaluations.
        data: Training data.
        recipes: Training recipes.
        tables: Tables of the paper.
        benchmarks: Official files of benchmarks.
        groups: Names declared by each file of `tasks/train` and `tasks/eval`, by the file's stem.
    """

    source: Path
    backbones: Mapping[str, BackboneCard] = field(default_factory=dict)
    methods: Mapping[str, TrainTask] = field(default_factory=dict)
    evaluators: Mapping[str, EvalTask] = field(default_factory=dict)
    data: Mapping[str, DataCard] = field(default_factory=dict)
    recipes: Mapping[str, Recipe] = field(default_factory=dict)
    tables: Mapping[str, PaperTable] = field(default_factory=dict)
    benchmarks: Mapping[str, BenchmarkData] = field(default_factory=dict)
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def main_methods(self) -> tuple[str, ...]:
        """Names of the methods that `all` stands for."""
        aside = {name for stem in SET_ASIDE for name in self.groups.get(stem, ())}
        return tuple(name for name in self.methods if name not in aside)


def find_tasks(directory: Path | None = None) -> Path:
    """Return the folder of declarations: `./tasks`, else the copy in the wheel, else the repository's.

    Args:
        directory: Working directory; None for the present one.

    Raises:
        PrerequisiteError: If there is none.
    """
    candidates = ((directory or Path.cwd()) / "tasks", PACKAGE / "_tasks", PACKAGE.parent / "tasks")
    for candidate in candidates:
        if (candidate / "backbones.py").is_file():
            return candidate.resolve()
    searched = ", ".join(str(candidate) for candidate in candidates)
    raise PrerequisiteError(
        f"No declarations found (looked for backbones.py in {searched})",
        "Install segros again.",
    )


def load_catalog(source: Path | None = None) -> Catalog:
    """Read the declarations below a folder.

    Args:
        source: Folder with `backbones.py`; None for `find_tasks()`.

    Raises:
        PrerequisiteError: If a file cannot be read, or a name is declared twice with different values.
    """
    source = (source or find_tasks()).resolve()
    found: dict[str, dict[str, Any]] = {kind: {} for kind in (*KINDS.values(), "recipes")}
    origin: dict[tuple[str, str], Path] = {}
    groups: dict[str, tuple[str, ...]] = {}
    for path in _declaration_files(source):
        declared: list[str] = []
        for kind, name, value in _declarations(_load(path, source), path):
            _add(found[kind], origin, (kind, name), value, path)
            declared.append(name)
        if path.parent != source:
            groups[path.stem] = (*groups.get(path.stem, ()), *declared)
    return Catalog(source=source, groups=groups, **found)


def _declaration_files(source: Path) -> Iterator[Path]:
    """Yield the Python files below `source`: its own, then those of its folders, each in alphabetical order."""
    yield from sorted(source.glob("*.py"))
    yield from sorted(path for path in source.glob("*/*.py") if not path.name.startswith("."))


def _add(
    known: dict[str, Any], origin: dict[tuple[str, str], Path], entry: tuple[str, str], value: Any, path: Path
) -> None:
    kind, name = entry
    if name in known:
        raise PrerequisiteError(
            f"Two {kind} are called {name!r}: one in {origin[entry]}, one in {path}",
            "Rename one of them.",
        )
    known[name] = value
    origin[entry] = path


def _declarations(module: ModuleType, path: Path) -> Iterator[tuple[str, str, Any]]:
    """Yield (kind, name, value) of what a file assigns; what it only imports is another file's."""
    for attribute in _assigned_names(path):
        value = getattr(module, attribute)
        if attribute == "RECIPES" and isinstance(value, Mapping):
            yield from (("recipes", name, recipe) for name, recipe in value.items())
            continue
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if type(item) in KINDS:
                yield KINDS[type(item)], item.name, item


def _assigned_names(path: Path) -> Sequence[str]:
    names: list[str] = []
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign):
            names.extend(target.id for target in node.targets if isinstance(target, ast.Name))
        elif isinstance(node, ast.AnnAssign) and node.value is not None and isinstance(node.target, ast.Name):
            names.append(node.target.id)
    return names


def _load(path: Path, source: Path) -> ModuleType:
    """Import a file of `source` below a module name that holds the folder's own digest."""
    root = f"_segros_tasks_{hashlib.sha256(str(source).encode()).hexdigest()[:12]}"
    if root not in sys.modules:
        package = ModuleType(root)
        package.__path__ = [str(source)]
        sys.modules[root] = package
    parts = path.relative_to(source).with_suffix("").parts
    try:
        return importlib.import_module(".".join((root, *parts)))
    except SyntaxError as error:
        raise PrerequisiteError(f"Cannot read {path}, line {error.lineno}: {error.msg}.") from error
    except (ImportError, NameError, AttributeError, TypeError, ValueError) as error:
        raise PrerequisiteError(f"Cannot read {path}: {type(error).__name__}: {error}") from error
