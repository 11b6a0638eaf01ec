"""How phases tell of their progress, without knowing who listens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from segros_train.training.loop import StepReport

__all__ = ["Listener", "Silent", "Steps", "ProgressCallback"]


class ProgressCallback(Protocol):
    """Report how far a phase has come."""

    def __call__(self, num_more: int, note: str = "") -> None:
        """Add finished items, with a few words on how it goes."""
        ...


class Listener(Protocol):
    """Follow the phases of a run."""

    def phase(self, title: str, total: int | None) -> AbstractContextManager[ProgressCallback]:
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
    def phase(self, title: str, total: int | None) -> Iterator[ProgressCallback]:
        """Follow one phase in silence."""
        yield lambda num_more, note="": None

    def note(self, text: str) -> None:
        """Ignore it."""


class Steps:
    """Turn reports of the training loop into progress, the steps of an earlier start included."""

    def __init__(self, tell: ProgressCallback) -> None:
        self.tell, self.step = tell, 0

    def __call__(self, report: StepReport) -> None:
        """Tell of one update."""
        note = (
            f"loss {report.loss:.3f}  {report.steps_per_second:.2f} steps/s  {report.samples_per_second:.0f} samples/s"
        )
        self.tell(report.step - self.step, note)
        self.step = report.step
