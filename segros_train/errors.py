"""Errors whose remedy lies in the user's hands."""

from __future__ import annotations

import difflib
import errno
import gc
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self, TypeVar

__all__ = [
    "MEMORY_ERRORS",
    "MemoryShortageError",
    "PrerequisiteError",
    "Problem",
    "chosen",
    "is_out_of_memory",
    "memory_shortage_named",
    "release_memory",
    "unknown_name",
]

Value = TypeVar("Value")

MEMORY_ERRORS = (MemoryError, RuntimeError, OSError)
"""The types that say that memory ran out, among much else; torch's own is a RuntimeError."""
MEMORY_SIGNS = ("out of memory", "defaultcpuallocator", "cannot allocate memory", "status_alloc_failed")
"""What libraries without an error type of their own for it say, in lower case."""


@dataclass(frozen=True)
class Problem:
    """Something in the user's world that stands in the way.

    Attributes:
        what: What was asked and what was found.
        remedy: What to do; empty where `what` says it all, in whole sentences.
    """

    what: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.what}. {self.remedy}" if self.remedy else self.what


class PrerequisiteError(Exception):
    """Say that the user's world lacks something: a file, a name, a right, a package.

    The command line prints its problems without a traceback and exits with code 2.
    """

    def __init__(self, what: str, remedy: str = "") -> None:
        """Report one problem; see `Problem`."""
        super().__init__(what, remedy)
        self.problems: tuple[Problem, ...] = (Problem(what, remedy),)

    @classmethod
    def of(cls, problems: Iterable[Problem]) -> Self:
        """Report several problems at once, each of them once."""
        first, *_ = found = tuple(dict.fromkeys(problems))
        error = cls(first.what, first.remedy)
        error.problems = found
        return error

    def __str__(self) -> str:
        return "\n".join(map(str, self.problems))


class MemoryShortageError(PrerequisiteError):
    """Say that a part of the work needs more memory than the CPU or the GPU has; the command exits with code 1."""


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that the memory of a CPU or a GPU is used up, whichever library raised it."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    if isinstance(error, RuntimeError) and type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, MEMORY_ERRORS) and any(sign in str(error).lower() for sign in MEMORY_SIGNS)


@contextmanager
def memory_shortage_named(work: str, remedy: str) -> Iterator[None]:
    """Turn every way to run out of memory into one sentence that says what to change, as a context or a decorator.

    Args:
        work: What is being done, to stand at the start of a sentence.
        remedy: What to change, to stand at its end.

    Raises:
        MemoryShortageError: In place of an error that `is_out_of_memory`.
    """
    try:
        yield
    except MEMORY_ERRORS as error:
        if not is_out_of_memory(error):
            raise
        raise MemoryShortageError(f"{work} needs more memory than there is{_asked(error)}: {remedy}.") from error


def _asked(error: BaseException) -> str:
    """Return which memory and how much of it an error asked for, as far as it says."""
    text = str(error)
    is_gpu = type(error).__name__ == "OutOfMemoryError" or re.search("CUDA|GPU|CUBLAS|CUDNN", text)
    place = " on the GPU" if is_gpu else " on the CPU"
    found = re.search(r"allocate (\d[\d.]*) (bytes|[KMGT]iB)", text)
    if found is None:
        return place
    amount = f"{int(found[1]) / 2**30:.2f} GiB" if found[2] == "bytes" and found[1].isdecimal() else found[0][9:]
    return f"{place} ({amount} at once)"


def release_memory() -> None:
    """Free what a failed attempt has left behind, once its error is let go of."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def chosen(kind: str, name: str, known: Mapping[str, Value]) -> Value:
    """Return what is declared under a name.

    Raises:
        PrerequisiteError: If nothing is; it names the nearest.
    """
    if name not in known:
        raise unknown_name(kind, name, known)
    return known[name]


def unknown_name(kind: str, name: str, known: Iterable[str], *, asking: str = "") -> PrerequisiteError:
    """Build the error for a name that is not declared, with the nearest declared one.

    Args:
        kind: What the name should have named, e.g. `"method"`.
        name: What was asked for.
        known: Every declared name.
        asking: Who asked for it, to stand before the sentence.
    """
    choices = sorted(known)
    close = difflib.get_close_matches(name, choices, n=1)
    hint = f"Did you mean {close[0]!r}? " if close else ""
    return PrerequisiteError(f"{asking}Unknown {kind} {name!r}", f"{hint}Declared: {', '.join(choices) or 'none'}.")
