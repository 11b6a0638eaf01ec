"""Errors whose remedy lies in the user's hands."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["PrerequisiteError", "unknown_name"]


class PrerequisiteError(Exception):
    """Say that the user's world lacks something: a file, a name, a right, a package.

    The command line prints the message without a traceback and exits with code 2.
    A message says what was asked, what was found and what to do.
    """


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
