"""The folder layouts of T2I-CompBench, and what is wrong with a folder.

    <root>/<category>/samples/<prompt>_<k>.png    the generators' own, at any depth below the root
    <root>/<question id>.png                      one picture a row

A prompt is told by the text before the first underscore; no official prompt holds one. Rows of one prompt share its
pictures.

Source: Karine-Huang/T2I-CompBench@1b70949, inference_eval.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from segros_eval.benchmarks.base import Sample, Score
from segros_eval.benchmarks.compbench.rules import group_of
from segros_eval.benchmarks.folders import (
    PICTURES,
    FolderFault,
    ImageFolder,
    absent,
    image_fault,
    unscored,
    wanted_size,
)
from segros_train.errors import PrerequisiteError

__all__ = ["folder_prompts", "read_compbench_folder"]


def folder_prompts(root: Path) -> Iterator[str]:
    """Yield the prompts (or question ids) that a folder's file names hold.

    Raises:
        PrerequisiteError: If the folder holds no picture.
    """
    yield from dict.fromkeys(_prompt(path) for path in _pictures(root))


def read_compbench_folder(
    root: Path, *, prompts: Sequence[Mapping[str, Any]], images_per_prompt: int, side_px: int | None = None
) -> ImageFolder:
    """Read a folder and name everything that is wrong with it.

    Args:
        root: The folder.
        prompts: Rows of the evaluation set.
        images_per_prompt: Images that each prompt should have; more are scored too.
        side_px: Width and height that images must have; None for those of most.

    Raises:
        PrerequisiteError: If the folder holds no picture.
    """
    files: dict[str, list[Path]] = {}
    for path in _pictures(root):
        files.setdefault(_prompt(path), []).append(path)
    size = wanted_size([path for paths in files.values() for path in paths], side_px)
    seen: dict[str, str] = {}
    broken: dict[Path, FolderFault] = {}
    for path in (path for paths in files.values() for path in paths):
        fault = image_fault(path, path.relative_to(root).as_posix(), seen=seen, size=size)
        if fault is not None:
            broken[path] = fault
    samples: list[Sample] = []
    paths_of: list[Path] = []
    lost: list[Score] = []
    faults = list(broken.values())
    for row in prompts:
        found = [*files.get(row["prompt"], ()), *files.get(str(row["question_id"]), ())]
        group = group_of(row["category"])
        for path in found:
            item = f"{row['question_id']}/{path.stem.rpartition('_')[2]}"
            if path in broken:
                lost.append(unscored(item, row["prompt"], f"{broken[path].kind}: {broken[path].detail}", group=group))
            else:
                samples.append(Sample(item, row["prompt"], "image", row["prompt"], metadata=row))
                paths_of.append(path)
        lacking = max(0, images_per_prompt - len(found))
        if lacking:
            kind: Any = "too few images" if found else "missing prompt"
            detail = f"{len(found)} of {images_per_prompt} images"
            faults.append(FolderFault(kind, row["prompt"], f"{detail} of row {row['question_id']}"))
            lost += [
                unscored(f"{row['question_id']}/missing-{place}", row["prompt"], f"{kind}: {detail}", group=group)
                for place in range(1, lacking + 1)
            ]
    known = {row["prompt"] for row in prompts} | {str(row["question_id"]) for row in prompts}
    for prompt in files.keys() - known:
        detail = f"{prompt!r} is not in the evaluation set"
        faults += [FolderFault("foreign prompt", path.relative_to(root).as_posix(), detail) for path in files[prompt]]
        lost += absent(f"file-{prompt}", len(files[prompt]), f"foreign prompt: {detail}", group="foreign")
    return ImageFolder(tuple(samples), tuple(paths_of), tuple(lost), tuple(faults))


def _pictures(root: Path) -> list[Path]:
    if not root.is_dir():
        raise PrerequisiteError(
            f"There is no folder {root}",
            "Name a folder of images in T2I-CompBench's layout.",
        )
    found = sorted(path for path in root.rglob("*") if path.suffix.lower() in PICTURES)
    if not found:
        raise PrerequisiteError(
            f"{root} is not in T2I-CompBench's layout: it holds no picture",
            f"Expected {root.name}/<category>/samples/<prompt>_000000.png, or {root.name}/<question id>.png.",
        )
    return found


def _prompt(path: Path) -> str:
    return path.stem.split("_")[0]
