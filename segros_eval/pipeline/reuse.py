"""Whether finished work may be taken up: the code that it ran through, compared as syntax.

A key (`segros_eval.pipeline.keys`) says what makes two numbers the same number. Reuse asks more: a researcher edits a
method and runs again, and must not be shown the old number. The code of a piece of work is the import closure of the
modules it runs (method, family, benchmark, their readers, the user's own modules among them), with the small data files
that lie beside them. Two closures are the same where their syntax trees are, docstrings and comments left out, both
read by the running Python. The sources are kept in the folder of the work, so that a difference can be named.
"""

from __future__ import annotations

import ast
import gzip
import hashlib
import importlib.util
import json
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segros_eval.benchmarks.base import Evaluator
from segros_train.backbones.loading import family_module
from segros_train.errors import PrerequisiteError
from segros_train.files import atomic_write
from segros_train.types import BackboneCard

if TYPE_CHECKING:
    from segros_eval.pipeline.plan import Stage

__all__ = [
    "Code",
    "begin",
    "changed",
    "code_of",
    "digest_of",
    "evaluation_modules",
    "read_code",
    "take_up",
    "training_modules",
    "write_code",
]

RECORD = "code.json.gz"
MAX_DATA_BYTES = 2**20
OWN = ("segros_train", "segros_eval")
TOOLS: Mapping[str, tuple[str, ...]] = {
    "detector": (
        "segros_eval.benchmarks.geneval.detector.mask2former",
        "segros_eval.benchmarks.geneval.detector.colors",
        "segros_eval.benchmarks.geneval.detector.mmdet",
    ),
    "judge": ("segros_eval.judges.client", "segros_eval.shapes.judge"),
    "mplug": ("segros_eval.benchmarks.dpgbench.mplug.answerer", "segros_eval.shapes.judge"),
}
"""Modules of the tools that an evaluator names in `needs`, which are opened by name."""


@dataclass(frozen=True)
class Code:
    """The sources that a piece of work runs through, by module name; data files by `package/name`, as digests."""

    sources: Mapping[str, str]

    @property
    def digest(self) -> str:
        """Hash of the syntax trees, for people to tell two codes apart; it depends on the Python that reads them."""
        whole = hashlib.sha256()
        for name in sorted(self.sources):
            whole.update(f"{name}\0{_tree(name, self.sources[name])}\0".encode())
        return whole.hexdigest()


def training_modules(card: BackboneCard, method: Any) -> tuple[str, ...]:
    """Return the modules that make weights and draw with them: loop, readers, the family and the method's own."""
    own = () if method is None else (type(method).__module__,)
    readers = ("segros_train.data.sources.generation", "segros_train.data.sources.instruction")
    return (
        *own,
        "segros_train.training.loop",
        *readers,
        "segros_train.backbones.loading",
        type(card.config).__module__,
        family_module(card),
    )


def evaluation_modules(evaluator: Evaluator) -> tuple[str, ...]:
    """Return the modules that ask, read responses, score and sum up."""
    tools = [module for need in evaluator.needs for module in TOOLS.get(need, ())]
    shared = (
        "segros_eval.pipeline.generate",
        "segros_eval.pipeline.store",
        "segros_eval.pipeline.score",
        "segros_eval.shapes.reader",
    )
    return (type(evaluator).__module__, *shared, *tools)


def code_of(*modules: str) -> Code:
    """Return the import closure of modules, within this project and the user's own modules.

    Raises:
        PrerequisiteError: If the source of a module cannot be read.
    """
    sources: dict[str, str] = {}
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        path = _source_file(name)
        if name in sources or path is None:
            continue
        try:
            sources[name] = path.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise PrerequisiteError(
                f"The source of {name} cannot be read: {error}",
                "Reinstall it.",
            ) from error
        sources |= _data_beside(path, name)
        waiting += _imported(name, sources[name], path.name == "__init__.py")
        waiting += _parents(name)
    return Code(sources)


def changed(old: Code, new: Code) -> list[str]:
    """Return the names of modules and data files that one has and the other has not, or has otherwise."""
    names = sorted(old.sources.keys() | new.sources.keys())
    return [name for name in names if not _same(name, old.sources.get(name), new.sources.get(name))]


def write_code(folder: Path, code: Code) -> None:
    """Keep a code in the folder of the work that runs through it, atomically."""
    with atomic_write(folder / RECORD) as temporary:
        temporary.write_bytes(gzip.compress(json.dumps(dict(code.sources)).encode(), mtime=0))


def read_code(folder: Path) -> Code | None:
    """Return the code kept in a folder, None where there is none or it is damaged."""
    try:
        value = json.loads(gzip.decompress((folder / RECORD).read_bytes()))
    except (OSError, ValueError, EOFError):
        return None
    is_code = isinstance(value, dict) and all(isinstance(text, str) for text in value.values())
    return Code(value) if is_code else None


def begin(folder: Path, code: Code, *, superseded: Path, by_key: bool = False) -> str:
    """Prepare a folder for work, and move aside what other code began there.

    Args:
        folder: Home of the work; it need not exist.
        code: What the work runs through.
        superseded: Where to move what other code began.
        by_key: Whether to go on with what other code began.

    Returns:
        What was found, in a sentence; empty where there is nothing to say.
    """
    kept = read_code(folder)
    if not folder.is_dir() or not any(folder.iterdir()):
        write_code(folder, code)
        return ""
    differing = ["its whole code, which is not recorded"] if kept is None else changed(kept, code)
    if not differing:
        return ""
    names = ", ".join(differing[:5]) + (f" and {len(differing) - 5} more" if len(differing) > 5 else "")
    if by_key:
        return f"{folder} was made by other code ({names}) and is taken all the same, as --reuse key asks."
    number = 1
    while (aside := superseded / f"{folder.name}-{number}").exists():
        number += 1
    superseded.mkdir(parents=True, exist_ok=True)
    folder.rename(aside)
    write_code(folder, code)
    return f"{folder} was made by other code ({names}): it is kept as {aside}, and the work is done anew."


def take_up(stage: Stage, folder: Path, *, by_key: bool = False) -> list[str]:
    """Leave in a run folder what the present code made, move aside what other code did, and return what to say of it.

    Args:
        stage: The model and its evaluations.
        folder: The run folder.
        by_key: Whether to take what other code made all the same.
    """
    training = code_of(*training_modules(stage.card, stage.task.method))
    parts = {"responses": code_of(*training.sources, "segros_eval.pipeline.generate", "segros_eval.pipeline.store")}
    if stage.trains:
        parts["train"] = training
    for cell in stage.cells:
        own = evaluation_modules(cell.task.evaluator)
        parts[f"evals/{cell.task.name}"] = code_of(*training.sources, *own)
    found = [
        begin(folder / name, code, superseded=folder / "superseded", by_key=by_key) for name, code in parts.items()
    ]
    return [said for said in found if said]


def digest_of(folder: Path) -> str | None:
    """Return the digest of the code kept in a folder, None where there is none."""
    code = read_code(folder)
    return None if code is None else code.digest


def _same(name: str, one: str | None, other: str | None) -> bool:
    return one == other or (one is not None and other is not None and _tree(name, one) == _tree(name, other))


@cache
def _tree(name: str, source: str) -> str:
    """Return the syntax tree of a module without what changes no number; of a data file, its digest."""
    if "/" in name:
        return source
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [part for part in body if not _is_prose(part)]  # type: ignore[attr-defined]
    return ast.dump(tree)


def _is_prose(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _parents(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]


@cache
def _imported(name: str, source: str, is_package: bool) -> tuple[str, ...]:
    """Return the names of what a module imports anywhere, and of what it may import from a package."""
    found: list[str] = []
    for node in _running(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = name.split(".")
                kept = parts[: len(parts) - node.level + is_package]
                base = ".".join([*kept, *([node.module] if node.module else [])])
            found += [base, *(f"{base}.{alias.name}" for alias in node.names)]
    return tuple(found)


def _running(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield every node below `tree` that is not for type checkers alone."""
    for child in ast.iter_child_nodes(tree):
        if not (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)):
            yield child
            yield from _running(child)


@cache
def _source_file(name: str) -> Path | None:
    """Return the file of a module of this project or of the user; None for a library's and for what is no module.

    Nothing is imported: below a top-level package, files are found by their place.
    """
    top, *below = name.split(".")
    for root in _roots(top):
        place = root.joinpath(*below)
        for file in (place / "__init__.py", place.with_name(f"{place.name}.py")):
            if file.is_file():
                return file
    return None


@cache
def _roots(top: str) -> tuple[Path, ...]:
    """Return the folders of a top-level package, or its file without the ending; none of a library."""
    loaded = sys.modules.get(top)
    found = [Path(folder) for folder in getattr(loaded, "__path__", ())]
    if not found:
        try:
            spec = importlib.util.find_spec(top)
        except (ImportError, ValueError):
            return ()
        if spec is None or not spec.origin or not spec.origin.endswith(".py"):
            return ()
        found = [Path(folder) for folder in spec.submodule_search_locations or [spec.origin.removesuffix(".py")]]
    resolved = [folder.resolve() for folder in found]
    is_library = any(folder.is_relative_to(library) for folder in resolved for library in _library_folders())
    return () if is_library and top not in OWN else tuple(resolved)


@cache
def _library_folders() -> tuple[Path, ...]:
    paths = sysconfig.get_paths()
    return tuple(Path(paths[kind]).resolve() for kind in ("stdlib", "platstdlib", "purelib", "platlib"))


def _data_beside(path: Path, module: str) -> dict[str, str]:
    """Return digests of the small data files of a package, by `package/name`."""
    if path.name != "__init__.py":
        return {}
    files = [file for file in path.parent.iterdir() if file.is_file() and file.suffix not in (".py", ".pyc")]
    return {
        f"{module}/{file.name}": hashlib.sha256(file.read_bytes()).hexdigest()
        for file in files
        if file.stat().st_size <= MAX_DATA_BYTES
    }
