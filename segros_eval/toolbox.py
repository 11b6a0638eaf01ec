"""Detectors and judges by world."""

from __future__ import annotations

from segros_eval.evaluators import EvalTask, Tools, World
from segros_train.errors import PrerequisiteError

__all__ = ["missing_tool", "open_tools"]


def missing_tool(task: EvalTask, world: World) -> str | None:
    """Say which tool an evaluation lacks in a world, None where it has all it needs."""
    if world == "photo" and task.kind == "image":
        return f"{task.title} needs a detector for photographs, which this version does not have"
    return None


def open_tools(task: EvalTask, world: World) -> Tools:
    """Return what an evaluation needs to score.

    Raises:
        PrerequisiteError: If a tool is missing.
    """
    lacking = missing_tool(task, world)
    if lacking is not None:
        raise PrerequisiteError(f"{lacking}. Use a backbone of the embedded world, e.g. harmon-tiny.")
    if world == "photo":
        return Tools()
    from segros_eval.scene import SceneReader

    return Tools(detector=SceneReader())
