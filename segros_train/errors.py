"""Errors whose remedy lies in the user's hands."""

from __future__ import annotations

import difflib
import errno
import gc
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

__all__ = [
    "MEMORY_ERRORS",
    "MemoryShortageError",
    "PrerequisiteError",
    "is_out_of_memory",
    "memory_shortage_named",
    "release_memory",
    "unknown_name",
]

MEMORY_ERRORS = (MemoryError, RuntimeError, OSError)
"""The types that say that memory ran out, among much else; torch's own is a RuntimeError."""
MEMORY_SIGNS = ("out of memory", "defaultcpuallocator", "cannot allocate memory", "status_alloc_failed")
"""What libraries without an error type of their own for it say, in lower case."""


class PrerequisiteError(Exception):
    """Say that the user's world lacks something: a file, a name, a right, a package.

    The command line prints the message without a traceback and exits with code 2.
    A message says what was asked, what was found and what to do.
    """


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


def unknown_name(kind: str, name: str, known: Iterable[str]) -> PrerequisiteError:
    """Build the error for a name that is not declared, with the nearest declared one.

    Args:
        kind: What the name should have named, e.g. `"method"`.
        name: What was asked for.
        known: Every declared name.
    """
    choices = sorted(known)
    close = difflib.get_close_matches(name, choices, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return PrerequisiteError(f"Unknown {kind} {name!r}.{hint} Declared: {', '.join(choices) or 'none'}.")
