"""Find a trained checkpoint and what its folder tells of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from segros_train.errors import PrerequisiteError

__all__ = ["backbone_of", "checkpoint_in", "method_of"]


def checkpoint_in(folder: Path) -> Path:
    """Return a checkpoint's folder: the one named, or the newest of the run folder named.

    Raises:
        PrerequisiteError: If there is none.
    """
    if (folder / "config.json").is_file():
        return folder
    for below in (folder / "train" / "checkpoints", folder / "checkpoints", folder):
        found = sorted(path.parent for path in below.glob("step-*/config.json"))
        if found:
            return found[-1]
    raise PrerequisiteError(
        f"There is no checkpoint in {folder}: it has no config.json",
        "Name a folder that `segros train` wrote, e.g. runs/<run>/train/checkpoints/<step>, or a run folder.",
    )


def backbone_of(checkpoint: Path) -> str:
    """Return the name of the backbone that a checkpoint's record gives.

    Raises:
        PrerequisiteError: If it gives none.
    """
    config = _json(checkpoint / "config.json")
    name = config.get("card")
    if not isinstance(name, str):
        raise PrerequisiteError(
            f"{checkpoint / 'config.json'} names no backbone: it was not written by segros",
            "Published weights belong into the folder that `segros doctor` names.",
        )
    return name


def method_of(checkpoint: Path) -> str:
    """Return the name of the method that trained a checkpoint, as the plan of its run folder has it.

    Raises:
        PrerequisiteError: If it lies in no run folder.
    """
    for folder in checkpoint.resolve().parents[:3]:
        if (folder / "plan.json").is_file():
            task = _json(folder / "plan.json").get("task")
            if isinstance(task, dict) and isinstance(task.get("name"), str):
                return str(task["name"])
            raise PrerequisiteError(
                f"{folder / 'plan.json'} names no method",
                "Say with --method what trained it.",
            )
    raise PrerequisiteError(
        f"{checkpoint} lies in no run folder",
        "Say with --method what trained it.",
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PrerequisiteError(
            f"Cannot read {path}: {error}",
            "Take another checkpoint.",
        ) from error
    if not isinstance(value, dict):
        raise PrerequisiteError(
            f"{path} is not what segros wrote",
            "Take another checkpoint.",
        )
    return value
