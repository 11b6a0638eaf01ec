"""The rules of CONVENTIONS.md that a machine can hold, over every file of the working tree."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("segros_train", "segros_eval", "pretraining")
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_TREE_MIB = 48

LAYERS = (
    "segros_train",
    "segros_train.methods",
    "segros_train.backbones.common",
    "segros_train.backbones",
    "segros_train.data",
    "segros_train.training",
    "segros_eval",
    "segros_eval.benchmarks.base",
    "segros_eval.statistics",
    "segros_eval.benchmarks",
    "segros_eval.judges",
    "segros_eval.shapes",
    "segros_eval.pipeline",
    "segros_eval.reporting",
    "segros_eval.cli",
    "pretraining",
)
"""Packages, each of which imports itself and those above it; a module belongs to the longest name it begins with."""

KNOWN_BY_TYPE = {
    (f"segros_train.backbones.{family}.{part}", f"segros_train.backbones.{family}.adapter")
    for family in ("harmon", "openuni", "showo")
    for part in ("answering", "sampling")
}
"""Imports of types alone that close a cycle: the adapter's own halves name the adapter that they are given."""

LONG_FILES: dict[str, str] = {}
"""Files that may be longer than the limit, each with its reason."""

LONG_FUNCTIONS: dict[str, str] = {}
"""Functions (`file:name`) that may be longer than the limit, each with its reason."""


@dataclass(frozen=True)
class Source:
    """A Python file of the tree."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.relative_to(ROOT).as_posix()

    @property
    def module(self) -> str:
        return self.name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")

    @property
    def package(self) -> str:
        return self.name.partition("/")[0]

    @cached_property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, filename=self.name)


def tree_files() -> list[Path]:
    """Return the files of the checkout that git does not ignore."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listing = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if listing.returncode:
        pytest.skip(f"not a git checkout: {listing.stderr.strip()}")
    paths = (ROOT / name for name in listing.stdout.split("\0") if name)
    return sorted({path for path in paths if path.is_file()})


@pytest.fixture(scope="module")
def files() -> list[Path]:
    return tree_files()


@pytest.fixture(scope="module")
def sources(files: list[Path]) -> list[Source]:
    return [Source(path) for path in files if path.suffix == ".py"]


@pytest.fixture(scope="module")
def library(sources: list[Source]) -> list[Source]:
    return [source for source in sources if source.package in PACKAGES]


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def runtime_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield every node below `tree` that is not under `if TYPE_CHECKING`."""
    for child in ast.iter_child_nodes(tree):
        if not is_type_checking(child):
            yield child
            yield from runtime_nodes(child)


def absolute(source: Source, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    parts = source.module.split(".")
    is_package = source.path.name == "__init__.py"
    base = parts[: len(parts) - node.level + is_package]
    return ".".join([*base, *([node.module] if node.module else [])])


def imports(source: Source, modules: frozenset[str] = frozenset(), *, typing: bool = False) -> set[str]:
    """Return what a file imports anywhere in it; `from package import module` counts as the module when known."""
    found: set[str] = set()
    for node in ast.walk(source.tree) if typing else runtime_nodes(source.tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = absolute(source, node)
            inner = {f"{base}.{alias.name}" for alias in node.names}
            found |= (inner & modules) | ({base} if inner - modules else set())
    return found


def functions(source: Source) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(source.tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def test_training_knows_neither_evaluation_nor_declarations(library: list[Source]) -> None:
    wrong = [
        f"{source.name} imports {name}"
        for source in library
        if source.package == "segros_train"
        for name in sorted(imports(source, typing=True))
        if name.partition(".")[0] in ("segros_eval", "tasks")
    ]
    assert not wrong


def test_no_module_imports_the_declarations(library: list[Source]) -> None:
    wrong = [s.name for s in library if any(name.partition(".")[0] == "tasks" for name in imports(s, typing=True))]
    assert not wrong


def test_modules_form_no_cycle(library: list[Source]) -> None:
    modules = frozenset(source.module for source in library)
    graph = {
        source.module: {
            name
            for name in imports(source, modules, typing=True) & modules - {source.module}
            if (source.module, name) not in KNOWN_BY_TYPE
        }
        for source in library
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def layer(module: str) -> int:
    """Return the place of the package that a module belongs to."""
    return max((len(name), place) for place, name in enumerate(LAYERS) if f"{module}.".startswith(f"{name}."))[1]


def test_packages_depend_one_way(library: list[Source]) -> None:
    modules = frozenset(source.module for source in library)
    wrong = [
        f"{source.name} imports {name}"
        for source in library
        for name in sorted(imports(source, modules, typing=True) & modules)
        if layer(name) > layer(source.module)
    ]
    assert not wrong


def test_a_package_imports_nothing(library: list[Source]) -> None:
    wrong = [
        f"{source.name}:{node.lineno}"
        for source in library
        if source.path.name == "__init__.py"
        for node in source.tree.body
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    assert not wrong


def test_an_import_of_a_type_that_closes_a_cycle_is_still_there(library: list[Source]) -> None:
    modules = frozenset(source.module for source in library)
    found = {(source.module, name) for source in library for name in imports(source, modules, typing=True)}
    assert found >= KNOWN_BY_TYPE


def test_the_types_of_declarations_import_no_torch() -> None:
    names = ("segros_train.types", "segros_train.errors", "segros_train.method", "segros_eval.benchmarks.base")
    code = f"import sys, {', '.join(names)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_a_file_stays_short(sources: list[Source]) -> None:
    lengths = {source.name: source.text.count("\n") for source in sources}
    assert {name: n for name, n in lengths.items() if n > MAX_FILE_LINES and name not in LONG_FILES} == {}


def test_a_function_fits_on_a_screen(sources: list[Source]) -> None:
    lengths = {
        f"{source.name}:{node.name}": (node.end_lineno or node.lineno) - node.lineno + 1
        for source in sources
        for node in functions(source)
    }
    assert {name: n for name, n in lengths.items() if n > MAX_FUNCTION_LINES and name not in LONG_FUNCTIONS} == {}


def test_no_exception_is_caught_blindly(sources: list[Source]) -> None:
    broad = {"Exception", "BaseException"}
    wrong = []
    for source in sources:
        for node in ast.walk(source.tree):
            if isinstance(node, ast.ExceptHandler):
                caught = {n.id for n in ast.walk(node.type) if isinstance(n, ast.Name)} if node.type else broad
                wrong += [f"{source.name}:{node.lineno}"] if caught & broad else []
    assert not wrong


def test_only_the_command_line_prints(library: list[Source]) -> None:
    wrong = [
        f"{source.name}:{node.lineno}"
        for source in library
        if not source.name.startswith("segros_eval/cli/")
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert not wrong


def test_no_file_touches_the_import_path(sources: list[Source]) -> None:
    wrong = []
    for source in sources:
        for node in ast.walk(source.tree):
            attribute = isinstance(node, ast.Attribute) and ast.unparse(node) in ("sys.path", "site.addsitedir")
            named = isinstance(node, ast.ImportFrom) and node.module == "sys" and "path" in {a.name for a in node.names}
            wrong += [f"{source.name}:{node.lineno}"] if attribute or named else []
    assert not wrong


def test_a_module_says_what_it_is_and_lists_its_names(library: list[Source]) -> None:
    wrong = []
    for source in library:
        if not ast.get_docstring(source.tree):
            wrong.append(f"{source.name}: no docstring")
        defined = {n.name for n in source.tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef)}
        public = {name for name in defined if not name.startswith("_")}
        listed = exported(source)
        if source.path.stem.strip("_") and public and listed is None:
            wrong.append(f"{source.name}: no __all__")
        wrong += [f"{source.name}: __all__ misses its name {n}" for n in sorted(set(listed or ()) - bound(source))]
    assert not wrong


def exported(source: Source) -> list[str] | None:
    """Return the names in `__all__`, None where there is none."""
    for node in source.tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return list(ast.literal_eval(node.value))
    return None


def bound(source: Source) -> set[str]:
    """Return the names that a module binds at its top level."""
    names: set[str] = set()
    for node in source.tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)}
    return names


def test_every_public_function_and_class_has_a_docstring(library: list[Source]) -> None:
    wrong = [
        f"{source.name}:{node.lineno} {node.name}"
        for source in library
        for node in source.tree.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
        and node.name in (exported(source) or ())
        and not ast.get_docstring(node)
    ]
    assert not wrong


def matches(files: list[Path], pattern: str) -> list[str]:
    """Return `file:line` of every text line that matches."""
    expression = re.compile(pattern)
    found = []
    for path in files:
        if path.suffix in (".png", ".npz", ".npy", ".safetensors", ".pt", ".pth", ".parquet", ".gz", ".zip", ".jpg"):
            continue
        lines = path.read_bytes().decode("utf-8", errors="replace").splitlines()
        found += [f"{path.relative_to(ROOT)}:{i}" for i, line in enumerate(lines, start=1) if expression.search(line)]
    return found


def test_no_file_names_a_machine(files: list[Path]) -> None:
    folders = "|".join(("home", "root", "Users", "work", "mnt", "opt", "scratch", "tmp", "media", "srv", "workspace"))
    assert matches(files, rf"""(?:^|[\s"'`=(\[,:])/(?:{folders})/\w""") == []


def test_no_file_names_a_package_registry(files: list[Path]) -> None:
    hosts = "|".join(("py" + r"pi\.(?:org|python)", "python" + r"hosted\.", r"download\.pytorch\.", r"anaconda\.org"))
    assert matches(files, rf"{hosts}|https?://[^\s/]+(?:/[^\s/]+)*/simple\b") == []


def test_nothing_is_left_for_later(sources: list[Source]) -> None:
    words = "|".join(("TO" + "DO", "FIX" + "ME", "XX" + "X"))
    assert matches([source.path for source in sources], rf"\b(?:{words})\b") == []


def test_the_working_tree_stays_small(files: list[Path]) -> None:
    assert sum(path.stat().st_size for path in files) / 2**20 < MAX_TREE_MIB


def test_an_exception_to_a_limit_is_still_needed(sources: list[Source]) -> None:
    known = {source.name for source in sources}
    known |= {f"{source.name}:{node.name}" for source in sources for node in functions(source)}
    assert {*LONG_FILES, *LONG_FUNCTIONS} <= known
