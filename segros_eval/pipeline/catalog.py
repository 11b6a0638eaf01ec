"""What can be run: the values declared below folders of tasks.

Declarations are frozen values (`BackboneCard`, `TrainTask`, `EvalTask`, `DataCard`, `PaperTable`, `BenchmarkData`,
and recipes in a mapping called `RECIPES`). They stand in a folder's own files and in those of its `train`, `eval` and
`paper`; what else lies there is for them to import (`from ..mine import Mine`). To the project's own folder those of
installed packages are added (entry points `segros.tasks`) and those that the user names; each is loaded by path under a
private module name. A folder that one merely stands in is never executed. No torch is imported here.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from segros_eval.benchmarks.base import EvalTask
from segros_eval.benchmarks.fetch import BenchmarkData
from segros_eval.pipeline.paper import PaperTable
from segros_train.errors import PrerequisiteError
from segros_train.method import TrainTask
from segros_train.types import BackboneCard, DataCard, Recipe

__all__ = ["Catalog", "added_tasks", "find_tasks", "load_catalog"]

PACKAGE = Path(__file__).parent.parent
KINDS: Mapping[type, str] = {
    BackboneCard: "backbones",
    TrainTask: "methods",
    EvalTask: "evaluators",
    DataCard: "data",
    PaperTable: "tables",
    BenchmarkData: "benchmarks",
}
FOLDERS = (".", "train", "eval", "paper")
SET_ASIDE = ("ablations",)
"""Files of `tasks/train` that `all` leaves out: they are asked for by name, or all together by the file's name."""


@dataclass(frozen=True)
class Catalog:
    """Everything declared, by name.

    Attributes:
        sources: The folders the declarations were read from.
        backbones: Cards.
        methods: Ways to fine-tune.
        evaluators: Evaluations.
        data: Training data.
        recipes: Training recipes.
        tables: Tables of the paper.
        benchmarks: Official files of benchmarks.
        groups: Names declared by each file of `tasks/train` and `tasks/eval`, by the file's stem.
    """

    sources: tuple[Path, ...]
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


def find_tasks() -> Path:
    """Return the project's own folder of declarations: the copy in the wheel, else the repository's.

    Raises:
        PrerequisiteError: If there is none.
    """
    candidates = (PACKAGE / "_tasks", PACKAGE.parent / "tasks")
    for candidate in candidates:
        if (candidate / "backbones.py").is_file():
            return candidate.resolve()
    searched = ", ".join(map(str, candidates))
    raise PrerequisiteError(f"No declarations found (looked for backbones.py in {searched})", "Install segros again.")


def added_tasks() -> tuple[Path, ...]:
    """Return the folders of declarations that installed packages name by entry points `segros.tasks`."""
    specs = (importlib.util.find_spec(entry.module) for entry in entry_points(group="segros.tasks"))
    return tuple(Path(place) for spec in specs if spec for place in spec.submodule_search_locations or ())


def load_catalog(*folders: Path) -> Catalog:
    """Read the declarations of folders.

    Args:
        folders: Where they stand; none for the project's own and what installed packages add.

    Raises:
        PrerequisiteError: If a folder declares nothing, a file cannot be read, or a name is declared twice with
            different values.
    """
    sources = tuple(dict.fromkeys(folder.resolve() for folder in folders or (find_tasks(), *added_tasks())))
    found: dict[str, dict[str, Any]] = {kind: {} for kind in (*KINDS.values(), "recipes")}
    origin: dict[tuple[str, str], Path] = {}
    groups: dict[str, tuple[str, ...]] = {}
    for source in sources:
        count = len(origin)
        for path in (path for part in FOLDERS for path in sorted((source / part).glob("*.py"))):
            declared: list[str] = []
            for kind, name, value in _declarations(_load(path, source), path):
                _add(found[kind], origin, (kind, name), value, path)
                declared.append(name)
            if path.parent != source:
                groups[path.stem] = (*groups.get(path.stem, ()), *declared)
        if len(origin) == count:
            places = "of its own, or in train, eval or paper"
            raise PrerequisiteError(f"{source} declares nothing", f"A folder of tasks has Python files {places}.")
    return Catalog(sources=sources, groups=groups, **found)


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
