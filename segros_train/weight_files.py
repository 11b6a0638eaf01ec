"""The one place where files of weights are opened: tensors and plain containers come out, and nothing in a file is run.

A pickle is a program, and a file of weights may come from anyone. It goes through torch's restricted reader, which
builds tensors, containers, numbers and texts, looks names up in a fixed list and refuses every other, dotted names and
newer protocols included. A safetensors file holds no program.
"""

from __future__ import annotations

import pickle
import re
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch.serialization import safe_globals

from segros_train.errors import PrerequisiteError, is_out_of_memory

__all__ = ["RESTART", "open_weight_file", "read_weight_file"]

RESTART = "Delete it, and what it holds is made anew."
"""What helps where a file of our own making cannot be read."""

# What torch and safetensors raise on torn, foreign and hostile files.
_DAMAGE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    SafetensorError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
    struct.error,
)
_REFUSED_NAME = re.compile(r"GLOBAL (\S+)")


def read_weight_file(path: Path, *, ignored: Iterable[str] = (), remedy: str = "Fetch the file again.") -> Any:
    """Return what a file of weights holds; nothing that it names is run.

    Args:
        path: A safetensors file by its suffix, else a file of `torch.save`, of either format.
        ignored: Exact names (`module.name`) of what may lie beside the tensors. They are not looked up: an inert
            stand-in takes their place.
        remedy: What helps where the file cannot be read.

    Raises:
        PrerequisiteError: If the file is missing or damaged, or names anything else.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with safe_globals([(_Inert, name) for name in ignored]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except _DAMAGE as error:
        if is_out_of_memory(error):
            raise
        raise PrerequisiteError(f"Cannot read the weights {path}: {_reason(error)}", remedy) from error


def open_weight_file(path: Path, *, remedy: str) -> Any:
    """Open a safetensors file whose tensors are read one by one, as a context manager.

    Raises:
        PrerequisiteError: If the file is missing or damaged.
    """
    try:
        return safe_open(path, framework="pt")
    except _DAMAGE as error:
        if is_out_of_memory(error):
            raise
        raise PrerequisiteError(f"Cannot read the weights {path}: {_reason(error)}", remedy) from error


class _Inert:
    """Stand for an object that is not needed: take any arguments and any state, keep and do nothing."""

    def __new__(cls, *_: Any) -> _Inert:
        return super().__new__(cls)

    def __init__(self, *_: Any) -> None: ...

    def __setstate__(self, _: Any) -> None: ...


def _reason(error: BaseException) -> str:
    """Say in a sentence what was wrong; torch's own advice to trust a file is left out."""
    text = str(error)
    if refused := _REFUSED_NAME.search(text):
        return f"it asks for {refused[1]}, which is no part of weights, and nothing of it was run"
    told = text.rpartition("WeightsUnpickler error: ")[2].strip() or type(error).__name__
    told = told.splitlines()[0].partition(". ")[0].rstrip(".")
    if isinstance(error, pickle.UnpicklingError):
        return f"it is no pickle of weights, and nothing of it was run ({told})"
    return told
