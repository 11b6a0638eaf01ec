"""Where the official files of an evaluation lie, and their commit on the hub."""

from __future__ import annotations

from pathlib import Path

from segros_eval.benchmarks.base import EvalTask, World
from segros_eval.benchmarks.fetch import hub_commit
from segros_train.files import segros_home

__all__ = ["benchmark_commit", "benchmark_folder"]


def benchmark_folder(task: EvalTask, world: World) -> Path | None:
    """Return the folder of an evaluation's official files; None where it has none, or needs none in this world."""
    return segros_home() / "data" / task.data if task.data and world == "photo" else None


def benchmark_commit(task: EvalTask, world: World) -> str | None:
    """Return the commit of an evaluation's files on the hub; None for files from elsewhere."""
    folder = benchmark_folder(task, world)
    return None if folder is None else hub_commit(folder)
