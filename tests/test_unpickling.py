"""No code of ours unpickles a file, or runs a text, but where a list says why; the walker that looks sees disguises.

What the processes of one run send each other is pickled by the libraries that carry it, and is not looked for.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest
from test_architecture import Source, tree_files

EXCEPTIONS = {
    "segros_train/weight_files.py: torch.serialization.safe_globals": "maps exact names to an inert stand-in",
    "segros_eval/benchmarks/geneval/detector/colors.py: torch.jit.load": (
        "an archive whose whole digest is OpenAI's, and no other"
    ),
}
"""What is allowed, each with its reason."""
OPENERS = {
    "segros_train/weight_files.py": "the reader of all others",
    "segros_eval/benchmarks/geneval/detector/mmdet_worker.py": (
        "runs where segros is not installed, and reads safetensors alone"
    ),
}
"""Files that may open weights themselves, each with its reason."""

MODULES = {"_pickle", "cPickle", "cloudpickle", "dill", "joblib", "jsonpickle", "marshal", "pickle", "runpy", "shelve"}
HARMLESS = {"pickle.UnpicklingError", "pickle.PicklingError", "pickle.PickleError"}
NAMES = {
    *(f"builtins.{name}" for name in ("compile", "eval", "exec")),
    *(f"torch.hub.{name}" for name in ("load", "load_state_dict_from_url")),
    *(f"torch.serialization.{name}" for name in ("add_safe_globals", "safe_globals")),
    *(f"torch.distributed.checkpoint.{name}" for name in ("load", "load_state_dict")),
    *(f"yaml.{name}" for name in ("full_load", "full_load_all", "load", "load_all", "unsafe_load", "unsafe_load_all")),
    "pandas.read_pickle",
    "torch.export.load",
    "torch.jit.load",
    "torch.package.PackageImporter",
}
LOADS = {"torch.load", "torch.serialization.load"}
"""Allowed with `weights_only=True` written out, and nothing else in its place."""
READS = {*LOADS, "safetensors.safe_open", "safetensors.torch.load", "safetensors.torch.load_file"}
VALUES = {"allow_pickle": False, "trust_remote_code": False, "weights_only": True}
"""Values that arguments of these names must have, written out."""
IMPORTERS = {"builtins.__import__", "importlib.import_module", "importlib.__import__"}


def names_of(tree: ast.AST) -> dict[str, str]:
    """Return what the names that a file imports stand for."""
    found: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                short = alias.asname or alias.name.partition(".")[0]
                found[short] = alias.name if alias.asname else short
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return found


def dotted(node: ast.AST, names: dict[str, str]) -> str:
    """Return the full name that an expression stands for, as far as it can be told; empty where it cannot."""
    if isinstance(node, ast.Name):
        return names.get(node.id, f"builtins.{node.id}")
    if isinstance(node, ast.Attribute) and (base := dotted(node.value, names)):
        return f"{base}.{node.attr}"
    if isinstance(node, ast.Call):
        called = dotted(node.func, names)
        texts = [arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
        if called == "builtins.getattr" and texts and (base := dotted(node.args[0], names)):
            return f"{base}.{texts[0]}"
        if called in IMPORTERS and texts:
            return texts[0]
    if isinstance(node, ast.Subscript) and dotted(node.value, names) == "sys.modules":
        return str(node.slice.value) if isinstance(node.slice, ast.Constant) else ""
    return ""


def is_unsafe(name: str) -> bool:
    return (name.partition(".")[0] in MODULES and "." in name and name not in HARMLESS) or name in NAMES


def imported(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield the line and full name of everything that is imported from a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and not node.level:
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def unpicklers(tree: ast.AST) -> list[tuple[int, str]]:
    """Return the line and full name of every way to unpickle, or to run a text, that a file uses."""
    names = names_of(tree)
    found = {(line, name) for line, name in imported(tree) if is_unsafe(name)}
    checked: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = dotted(node.func, names)
            given = {keyword.arg: keyword.value for keyword in node.keywords if keyword.arg}
            for argument, value in given.items():
                right = isinstance(value, ast.Constant) and value.value is VALUES.get(argument)
                if argument == "pickle_module" or (argument in VALUES and not right):
                    found.add((node.lineno, argument))
            if called in LOADS and "weights_only" in given:
                checked.add(node.func)
        name = dotted(node, names)
        if is_unsafe(name) or (name in LOADS and node not in checked):
            found.add((getattr(node, "lineno", 0), name))
    return sorted(found)


def openers(tree: ast.AST) -> set[str]:
    """Return what of the libraries' readers of weights a file uses."""
    names = names_of(tree)
    return READS & ({name for _, name in imported(tree)} | {dotted(node, names) for node in ast.walk(tree)})


@pytest.fixture(scope="module")
def sources() -> list[Source]:
    found = [Source(path) for path in tree_files() if path.suffix == ".py"]
    return [source for source in found if source.package != "tests"]


def test_nothing_unpickles_and_no_text_is_run(sources: list[Source]) -> None:
    assert {source.package for source in sources} >= {"segros_train", "segros_eval", "tasks", "benchmarks"}
    found = {f"{source.name}: {name}": line for source in sources for line, name in unpicklers(source.tree)}
    assert {name: line for name, line in found.items() if name not in EXCEPTIONS} == {}
    assert EXCEPTIONS.keys() <= found.keys()


def test_files_of_weights_are_opened_in_one_place(sources: list[Source]) -> None:
    assert {source.name for source in sources if openers(source.tree)} == OPENERS.keys()


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("import pickle\npickle.loads(b'')", "pickle.loads"),
        ("import pickle as p\nclass U(p.Unpickler): ...", "pickle.Unpickler"),
        ("from pickle import load as read", "pickle.load"),
        ("def f():\n    from joblib import load", "joblib.load"),
        ("import dill\nread = dill.load", "dill.load"),
        ("import cloudpickle\ncloudpickle.loads(b'')", "cloudpickle.loads"),
        ("import marshal\nmarshal.loads(b'')", "marshal.loads"),
        ("import shelve\nshelve.open('a')", "shelve.open"),
        ("import torch\ntorch.load('a')", "torch.load"),
        ("import torch\ntorch.load('a', weights_only=False)", "weights_only"),
        ("import torch\ntorch.load('a', weights_only=safe)", "weights_only"),
        ("import torch\ntorch.load('a', **options)", "torch.load"),
        ("import torch\ntorch.load('a', weights_only=True, pickle_module=mine)", "pickle_module"),
        ("import torch as t\nmap(t.load, paths)", "torch.load"),
        ("from torch import load\nload('a')", "torch.load"),
        ("from torch import serialization\nserialization.load('a')", "torch.serialization.load"),
        ("import torch\ngetattr(torch, 'load')('a')", "torch.load"),
        ("import torch\ntorch.hub.load('a', 'b')", "torch.hub.load"),
        ("from torch import jit\njit.load('a')", "torch.jit.load"),
        ("from torch.serialization import add_safe_globals", "torch.serialization.add_safe_globals"),
        ("import numpy as np\nnp.load('a', allow_pickle=True)", "allow_pickle"),
        ("import pandas\npandas.read_pickle('a')", "pandas.read_pickle"),
        ("import yaml\nyaml.load(text, yaml.Loader)", "yaml.load"),
        ("import yaml\nyaml.unsafe_load(text)", "yaml.unsafe_load"),
        (
            "from transformers import AutoModel\nAutoModel.from_pretrained('a', trust_remote_code=True)",
            "trust_remote_code",
        ),
        ("__import__('pickle').loads(b'')", "pickle.loads"),
        ("import importlib\nimportlib.import_module('dill').loads(b'')", "dill.loads"),
        ("import sys\nsys.modules['pickle'].loads(b'')", "pickle.loads"),
        ("eval('1')", "builtins.eval"),
        ("import builtins\nbuiltins.exec('1')", "builtins.exec"),
        ("run = exec", "builtins.exec"),
    ],
)
def test_the_walker_sees_a_planted_way_to_unpickle(text: str, name: str) -> None:
    assert name in {found for _, found in unpicklers(ast.parse(text))}


@pytest.mark.parametrize(
    "text",
    [
        "import torch\ntorch.load('a', map_location='cpu', weights_only=True)",
        "import pickle\ntry: ...\nexcept pickle.UnpicklingError: ...",
        "import numpy as np\nnp.load('a')\nnp.load('a', allow_pickle=False)",
        "import yaml\nyaml.safe_load(text)",
        "import re\nre.compile('a')\nmodel.eval()",
        "import json\njson.load(stream)",
    ],
)
def test_the_walker_lets_pass_what_runs_nothing(text: str) -> None:
    assert unpicklers(ast.parse(text)) == []


def test_the_walker_sees_who_opens_weights() -> None:
    for text in ("from safetensors.torch import load_file", "import safetensors\nsafetensors.safe_open('a')"):
        assert openers(ast.parse(text))
    assert not openers(ast.parse("from safetensors.torch import save_file"))
