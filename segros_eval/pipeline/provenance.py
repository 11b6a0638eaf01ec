"""Where a number comes from: versions, commit, machine."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segros_eval.pipeline.keys import to_jsonable, version_of, weights_digest
from segros_eval.pipeline.official_files import benchmark_commit
from segros_eval.pipeline.ranks import device_name

if TYPE_CHECKING:
    from segros_eval.pipeline.plan import Cell, Stage

__all__ = ["commit", "run_provenance", "software", "versions"]

PACKAGES = ("segros", "torch", "transformers", "accelerate", "numpy", "pillow", "opencv-python-headless")


def software() -> dict[str, Any]:
    """Return the commit of the code, and the versions of what computes numbers."""
    return {"commit": commit(), "versions": versions()}


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that compute numbers."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


@cache
def commit() -> str | None:
    """Return the commit of the checkout the code runs from, with `+changes` where files differ; None outside one."""
    root = Path(__file__).parent.parent.parent
    if not (root / ".git").exists():
        return None
    head = _git(root, "rev-parse", "HEAD")
    changed = _git(root, "status", "--porcelain", "--untracked-files=no", "--", "segros_train", "segros_eval")
    return f"{head}+changes" if head and changed else head


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True)
    except (FileNotFoundError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def run_provenance(
    stage: Stage,
    cell: Cell,
    *,
    source: Path | None,
    training: Mapping[str, Any],
    drawing: Mapping[str, Any],
    device: str,
    code: str | None,
    seconds: Mapping[str, float],
) -> dict[str, Any]:
    """Return what a result says of its origin: versions, digests, settings and times; JSON-ready.

    Args:
        stage: The model.
        cell: The evaluation.
        source: Its checkpoint; None for the base.
        training: What training took.
        drawing: Images at once and peak memory where they were counted.
        device: Torch device.
        code: Digest of the code that it ran through.
        seconds: What each phase took.
    """
    recipe = stage.recipe
    return {
        **software(),
        "run": stage.folder,
        "stage_key": stage.key,
        "device": device_name(device),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "task": to_jsonable(stage.task),
        "understanding_is_frozen": cell.frozen,
        "weights": weights_digest(stage.card, source),
        "data": stage.data.name if stage.data else None,
        "crop": stage.data.crop if stage.data else None,
        "declared_versions": {"method": version_of(stage.task.method), "family": version_of(stage.card.config)},
        "recipe": to_jsonable(recipe),
        "optimizer_steps": recipe.optimizer_steps if recipe else 0,
        "micro_steps": recipe.micro_steps if recipe else 0,
        "training": dict(training),
        "drawing": dict(drawing),
        "settings": to_jsonable(stage.settings),
        "evaluator": to_jsonable(cell.task.evaluator),
        "code": code,
        "questions": benchmark_commit(cell.task, stage.card.world),
        "subset": cell.limit is not None,
        "limit": cell.limit,
        "seconds": dict(seconds),
    }
