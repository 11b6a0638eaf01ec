"""How phases tell of their progress, without knowing who listens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

__all__ = ["Listener", "Silent", "Tell"]


class Tell(Protocol):
    """Report how far a phase has come."""

    def __call__(self, num_more: int, note: str = "") -> None:
        """Add finished items, with a few words on how it goes."""
        ...


class Listener(Protocol):
    """Follow the phases of a run."""

    def phase(self, title: str, total: int | None) -> AbstractContextManager[Tell]:
        """Follow one phase.

        Args:
            title: What is done, on which model.
            total: Number of items; None where it is not known.
        """
        ...

    def note(self, text: str) -> None:
        """Take notice of something that happened once."""
        ...


class Silent:
    """A listener that says nothing."""

    @contextmanager
    def phase(self, title: str, total: int | None) -> Iterator[Tell]:
        """Follow one phase in silence."""
        yield lambda num_more, note="": None

    def note(self, text: str) -> None:
        """Ignore it."""
