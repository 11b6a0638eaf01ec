"""From scores to a result, and the scoring of images that segros did not draw."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segros_eval.benchmarks.base import EvalTask, Evaluator, Result, Sample, Score, Tools, World
from segros_eval.benchmarks.folders import FolderFault, ImageFolder
from segros_eval.benchmarks.kinds import ImageBenchmark
from segros_eval.pipeline.keys import to_jsonable, version_of
from segros_eval.pipeline.provenance import software
from segros_train.errors import PrerequisiteError
from segros_train.files import content_key, file_sha256

__all__ = ["FolderScore", "count_images", "explained", "score_folder", "summarise", "windows", "world_of"]

PICTURES = (".png", ".jpg", ".jpeg", ".webp")
_IMAGES_AT_ONCE = 64
_SCORED_AT_ONCE = 128


@dataclass(frozen=True)
class FolderScore:
    """What a folder of images is worth, and what is wrong with it.

    Attributes:
        result: The numbers; its method is `"images"`, its backbone the folder's name.
        scores: A score per image that is there or should be there.
        faults: Missing prompts, missing, broken and copied images; each is unscored.
    """

    result: Result
    scores: tuple[Score, ...]
    faults: tuple[FolderFault, ...]


def summarise(
    task: EvalTask,
    scores: Sequence[Score],
    *,
    method: str,
    backbone: str,
    seeds: Sequence[int],
    world: World,
    key: str,
    provenance: Mapping[str, Any],
) -> Result:
    """Build the result of an evaluation from its scores.

    Args:
        task: The evaluation.
        scores: All its scores, unscored ones included.
        method: Name of the train task.
        backbone: Name of the card.
        seeds: Seeds of training and drawing.
        world: World of the images.
        key: Content hash of everything that determines the numbers.
        provenance: Versions, hashes, settings, times; JSON-ready.
    """
    from segros_eval.statistics.bootstrap import interval_estimates, point_estimates

    metrics = task.evaluator.metrics
    counts = {status: sum(score.status == status for score in scores) for status in ("unparsed", "unscored")}
    return Result(
        method=method,
        backbone=backbone,
        evaluator=task.name,
        metrics=point_estimates(metrics, scores),
        intervals=interval_estimates(metrics, scores),
        num_samples=len(scores) - counts["unscored"],
        num_unparsed=counts["unparsed"],
        num_unscored=counts["unscored"],
        seeds=tuple(seeds),
        protocol=task.evaluator.protocol_in(world),
        world=world,
        key=key,
        provenance=provenance,
    )


def windows(samples: Sequence[Sample], responses: Sequence[Any]) -> Iterator[tuple[Sequence[Sample], Sequence[Any]]]:
    """Yield samples with their responses, a few at a time, so that progress shows."""
    for start in range(0, len(samples), _SCORED_AT_ONCE):
        window = slice(start, start + _SCORED_AT_ONCE)
        yield samples[window], responses[window]


def explained(score: Score, refused: Mapping[str, str]) -> Score:
    """Say of an item without a response why the backbone refused it.

    Args:
        score: A score.
        refused: Reasons by item id.
    """
    if score.status != "unscored" or score.item_id not in refused:
        return score
    return dataclasses.replace(score, reason=f"{score.reason}: {refused[score.item_id]}".lstrip(": "))


def world_of(task: EvalTask, folder: Path) -> World:
    """Tell the world of a folder of images: the embedded one where it has a prompt of that world's set.

    Args:
        task: The evaluation.
        folder: The images, in the benchmark's official layout.

    Raises:
        PrerequisiteError: If the layout is not found.
    """
    found = set(_layout(task).folder_prompts(folder))
    if "shapes" not in task.worlds:
        return "photo"
    own = list(task.evaluator.samples("shapes", None, (0,)))
    # A layout names its images by prompt or by item.
    known = {sample.prompt for sample in own} | {sample.cluster_id for sample in own}
    return "shapes" if known & found else "photo"


def count_images(folder: Path) -> int:
    """Return how many pictures lie below a folder."""
    return sum(path.suffix.lower() in PICTURES for path in folder.rglob("*"))


def score_folder(
    task: EvalTask,
    folder: Path,
    *,
    tools: Tools,
    world: World = "photo",
    data: Path | None = None,
    side_px: int | None = None,
    advance: Callable[[int], None] | None = None,
) -> FolderScore:
    """Score a folder of images in the benchmark's official layout.

    Args:
        task: The evaluation.
        folder: The images.
        tools: What the evaluation needs to score images of this world.
        world: Whose prompts the folder should hold.
        data: Folder of the benchmark's official files, for photographs.
        side_px: Width and height that images must have, of a grid each cell; None for those of most images.
        advance: Told how many images have been scored, as they are.

    Raises:
        PrerequisiteError: If the layout is unknown or not found, or data or a tool are missing.
    """
    evaluator = _layout(task)
    if "detector" in evaluator.needs and tools.detector is None:
        raise PrerequisiteError(
            f"Cannot score {folder}: {task.title} needs a detector, and there was none for photographs",
            "Open one with segros_eval.pipeline.tools.open_tools.",
        )
    found = evaluator.read_folder(folder, world, data, side_px=side_px)
    scores = [*_scored(evaluator, found, tools, advance), *found.unscored]
    result = summarise(
        task,
        scores,
        method="images",
        backbone=folder.resolve().name,
        seeds=(),
        world=world,
        key=_key(evaluator, found, tools, world),
        provenance={
            **software(),
            "images": folder.resolve().name,
            "evaluator": to_jsonable(evaluator),
            **tools.record,
            "faults": [dataclasses.asdict(fault) for fault in found.faults],
        },
    )
    return FolderScore(result, tuple(scores), found.faults)


def _layout(task: EvalTask) -> ImageBenchmark:
    """Return a benchmark of images.

    Raises:
        PrerequisiteError: If the task asks questions.
    """
    if not isinstance(task.evaluator, ImageBenchmark):
        raise PrerequisiteError(f"Folders of {task.title} cannot be scored: it asks questions, it does not draw.")
    return task.evaluator


def _scored(
    evaluator: Evaluator, found: ImageFolder, tools: Tools, advance: Callable[[int], None] | None
) -> list[Score]:
    scores: list[Score] = []
    for start in range(0, len(found.samples), _IMAGES_AT_ONCE):
        window = slice(start, start + _IMAGES_AT_ONCE)
        scores += evaluator.score(found.samples[window], found.paths[window], tools)
        if advance is not None:
            advance(len(found.samples[window]))
    return scores


def _key(evaluator: Evaluator, found: ImageFolder, tools: Tools, world: World) -> str:
    # A path may be a part of a picture, which has a path of its own.
    files = (getattr(path, "path", path) for path in found.paths)
    images = {sample.item_id: file_sha256(path) for sample, path in zip(found.samples, files, strict=True)}
    missing = sorted(score.item_id for score in found.unscored)
    return content_key(
        {
            "evaluator": to_jsonable(evaluator),
            "version": version_of(evaluator),
            "protocol": evaluator.protocol,
            "tools": tools.record,
            "world": world,
            "images": images,
            "missing": missing,
        }
    )
