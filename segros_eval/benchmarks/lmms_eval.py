"""Any other task of the field: lmms-eval asks, scores and sums up, a backbone of ours answers.

`--eval lmms:<task>` makes one of these. The task's own code decides everything that a protocol decides, so an item's
value is one of the task's own metrics, and intervals are left to lmms-eval's standard errors, where it gives any.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from segros_eval.benchmarks.base import EvalTask, Evaluator, Metric, Sample, Score, Tools, World
from segros_train.errors import PrerequisiteError, Problem

__all__ = ["PREFIX", "LmmsTask", "harness_task", "lmms_version", "missing_harness"]

PREFIX = "lmms:"


@dataclass(frozen=True)
class LmmsTask(Evaluator):
    """A task of lmms-eval.

    Attributes:
        task: Its name there.
        dataset_path: Data in place of the task's own: a repository on the hub, a parquet file or a folder of them.
        multi_image: What a backbone is shown of several pictures: side by side, the first alone, or as they are.
    """

    kind: ClassVar[Literal["harness"]] = "harness"

    task: str
    dataset_path: str | None = None
    multi_image: str = "joined"

    def __post_init__(self) -> None:
        if self.multi_image not in ("joined", "first", "all"):
            raise ValueError(f"multi_image must be joined, first or all, found {self.multi_image!r}.")

    @property
    def protocol(self) -> str:
        """Version of lmms-eval, name of the task, and every departure from it."""
        changed = [f"dataset_path={self.dataset_path}"] if self.dataset_path else []
        changed += [f"multi_image={self.multi_image}"] if self.multi_image != "joined" else []
        return " ".join([f"lmms-eval@{lmms_version() or 'missing'}", self.task, *changed])

    def samples(self, world: World, data: Path | None, seeds: Sequence[int]) -> Iterator[Sample]:
        """Raise: lmms-eval asks, not this project."""
        raise PrerequisiteError(f"lmms-eval asks the questions of {self.task} itself.")

    def score(self, samples: Sequence[Sample], responses: Sequence[Any], tools: Tools) -> list[Score]:
        """Raise: lmms-eval scores, not this project."""
        raise PrerequisiteError(f"lmms-eval scores the answers of {self.task} itself.")

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The mean over items, for comparing runs: lmms-eval sums up itself, and does not say how."""
        from segros_eval.statistics.tally import item_mean, item_tally

        return (item_mean("mean over items", item_tally(), factor=100, clusters="document"),)


def harness_task(name: str) -> EvalTask:
    """Return the evaluation that a name like `lmms:pope` stands for.

    Raises:
        PrerequisiteError: If it names no task.
    """
    task = name.removeprefix(PREFIX)
    if not task:
        raise PrerequisiteError(f"--eval {PREFIX} takes the name of a task of lmms-eval, e.g. {PREFIX}pope.")
    return EvalTask(name=name, title=name, evaluator=LmmsTask(task), worlds=("photo", "shapes"))


def lmms_version() -> str | None:
    """Return the version of lmms-eval, None where it is not installed."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("lmms-eval")
    except PackageNotFoundError:
        return None


def missing_harness() -> Iterator[Problem]:
    """Say that lmms-eval is not installed, where it is not."""
    if not lmms_version():
        yield Problem("lmms-eval is missing", "Install it with `pip install segros[lmms]`.")
