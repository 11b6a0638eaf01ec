"""Detectors and judges by world: what an evaluation needs to score, what of it is missing, and opening it.

An evaluator names what it needs in `needs`: `"detector"`, `"judge"` (a vision language model that answers over HTTP)
or `"mplug"` (DPG-Bench's official answerer). The embedded world answers for all of them by reading its own scenes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from segros_eval.benchmarks.base import EvalTask, Tools, World
from segros_eval.benchmarks.lmms_eval import missing_harness
from segros_train.errors import PrerequisiteError, Problem

if TYPE_CHECKING:
    from segros_eval.pipeline.judges import Judges

__all__ = ["asks_server", "missing_tools", "open_tools"]


def missing_tools(task: EvalTask, world: World) -> list[Problem]:
    """Return the tools that an evaluation lacks in a world."""
    if task.kind == "harness":
        return list(missing_harness())
    if world == "shapes":
        return []
    found = [_LACKS[need](task.evaluator) for need in task.evaluator.needs]
    return [Problem(f"{task.title} {lack.what}", lack.remedy) for lack in found if lack is not None]


def asks_server(task: EvalTask, world: World) -> bool:
    """Say whether an evaluation is scored by a judge that may want the device for itself."""
    return world == "photo" and "judge" in task.evaluator.needs


def open_tools(task: EvalTask, world: World, *, judges: Judges) -> Tools:
    """Return what an evaluation needs to score; whoever opens it closes it.

    Args:
        task: The evaluation.
        world: World of the images.
        judges: Connects to a judge; a server of it outlives the tools.

    Raises:
        PrerequisiteError: If a tool is missing, or does not pass its own test.
    """
    if lacking := missing_tools(task, world):
        raise PrerequisiteError.of(lacking)
    needs = task.evaluator.needs
    if world == "shapes":
        from segros_eval.shapes.judge import SceneJudge
        from segros_eval.shapes.reader import SceneReader

        return Tools(detector=SceneReader(), judge=SceneJudge())
    detector = _open_detector(task.evaluator) if "detector" in needs else None
    if "judge" in needs:
        judge = judges.open(task.evaluator.judge_model, revision=task.evaluator.judge_revision)
        return Tools(detector=detector, judge=judge, close=judge.close)
    if "mplug" in needs:
        from segros_eval.benchmarks.dpgbench.mplug.answerer import open_mplug

        return Tools(detector=detector, judge=open_mplug())
    return Tools(detector=detector)


def _open_detector(evaluator: Any) -> Any:
    if evaluator.detector == "mmdet":
        from segros_eval.benchmarks.geneval.detector.mmdet import open_reference_detector

        return open_reference_detector(min_score=evaluator.min_score)
    from segros_eval.benchmarks.geneval.detector.mask2former import open_detector

    return open_detector(min_score=evaluator.min_score)


def _lacks_detector(evaluator: Any) -> Problem | None:
    from segros_eval.benchmarks.geneval.detector.files import detector_files
    from segros_eval.benchmarks.geneval.detector.mmdet import missing_environment

    if evaluator.detector == "mmdet" and (remedy := missing_environment()):
        return Problem("needs mmdet in an environment of its own, and there is none", remedy)
    absent = next((path for path in detector_files() if not path.is_file()), None)
    if absent is None:
        return None
    return Problem(
        f"needs a detector for photographs, and {absent} does not exist", "Get it with `segros data fetch geneval`."
    )


def _lacks_judge(evaluator: Any) -> Problem | None:
    from segros_eval.judges.vllm_server import missing_judge

    remedy = missing_judge(evaluator.judge_model)
    return Problem(f"needs the judge {evaluator.judge_model}, and there is none", remedy) if remedy else None


def _lacks_mplug(_: Any) -> Problem | None:
    from segros_eval.benchmarks.dpgbench.mplug.files import missing_mplug

    absent = missing_mplug()
    if absent is None:
        return None
    return Problem(
        f"needs its official answerer mPLUG, and {absent} does not exist",
        "Get it with `segros data fetch dpgbench`, or let a judge answer, which is not official: "
        "--set dpgbench.answerer=judge.",
    )


_LACKS = {"detector": _lacks_detector, "judge": _lacks_judge, "mplug": _lacks_mplug}
