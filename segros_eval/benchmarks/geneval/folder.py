"""The folder layout that GenEval's own scripts read and write, both ways, and what is wrong with a folder.

    <root>/00000/metadata.jsonl        the prompt's record, one JSON object
    <root>/00000/samples/00000.png     any name of digits

The official scorer takes whatever it finds, so that a folder with missing prompts, too few images, broken
files, images of several sizes or one image copied four times gives a number like any other. Here each such
fault is named, and what it touches is unscored. Which prompt a folder is about is read from its record, never
from its name.

Source: djghosh13/geneval@af4902f (generation/diffusers_generate.py, evaluation/evaluate_images.py).
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from segros_eval.benchmarks.base import Sample, Score
from segros_eval.benchmarks.folders import FolderFault, ImageFolder, WantedSize, image_fault, wanted_size
from segros_train.errors import PrerequisiteError
from segros_train.files import atomic_write, content_key, write_text

__all__ = [
    "folder_prompts",
    "read_geneval_folder",
    "write_geneval_folder",
]

_IMAGE_NAME = re.compile(r"^\d+\.png$")
_RECORD_FILE = "metadata.jsonl"


def read_geneval_folder(
    root: Path, *, prompts: Sequence[Mapping[str, Any]], images_per_prompt: int, side_px: int | None = None
) -> ImageFolder:
    """Read a folder in the official layout and name everything that is wrong with it.

    Prompts are known by their records: items are numbered as in the evaluation set, whatever a folder is called.

    Args:
        root: The folder.
        prompts: Records of the evaluation set.
        images_per_prompt: Images that each prompt should have; more are scored too.
        side_px: Width and height that images must have; None for those of most.

    Raises:
        PrerequisiteError: If there is no folder of a prompt at all.
    """
    directories = _prompt_directories(root)
    size = wanted_size([path for directory in directories for path in _images(directory)], side_px)
    awaited = {content_key(record): f"{index:05d}" for index, record in enumerate(prompts)}
    parts = []
    for directory in directories:
        record = _record(directory)
        if record is None:
            fault = FolderFault("no record", directory.name, f"its {_RECORD_FILE} is missing or holds no prompt")
            parts.append(ImageFolder(faults=(fault,)))
        elif (prompt_id := awaited.pop(content_key(record), None)) is None:
            parts.append(_foreign(directory, record))
        else:
            parts.append(
                _prompt(directory, record, prompt_id=prompt_id, images_per_prompt=images_per_prompt, size=size)
            )
    missing = set(awaited.values())
    parts += [
        _missing_prompt(record, f"{index:05d}", images_per_prompt)
        for index, record in enumerate(prompts)
        if f"{index:05d}" in missing
    ]
    return ImageFolder(
        samples=tuple(chain.from_iterable(part.samples for part in parts)),
        paths=tuple(chain.from_iterable(part.paths for part in parts)),
        unscored=tuple(chain.from_iterable(part.unscored for part in parts)),
        faults=tuple(chain.from_iterable(part.faults for part in parts)),
    )


def folder_prompts(root: Path) -> Iterator[str]:
    """Yield the prompts that a folder in the official layout says it shows.

    Args:
        root: The folder.

    Raises:
        PrerequisiteError: If there is no folder of a prompt at all.
    """
    for directory in _prompt_directories(root):
        record = _record(directory)
        if record is not None:
            yield record["prompt"]


def write_geneval_folder(root: Path, images: Iterable[tuple[Sample, Path]]) -> None:
    """Write images in the official layout, for the official scripts or for `segros score geneval`.

    Args:
        root: Where to write; other files there are left alone.
        images: Samples of GenEval, each with its PNG file.

    Raises:
        PrerequisiteError: If the folder cannot be written.
    """
    for sample, source in images:
        prompt_id, _, draw = sample.item_id.partition("/")
        record = json.dumps(dict(sample.metadata)) + "\n"
        write_text(root / prompt_id / _RECORD_FILE, record)
        with atomic_write(root / prompt_id / "samples" / f"{draw}.png") as temporary:
            shutil.copyfile(source, temporary)


def _prompt_directories(root: Path) -> list[Path]:
    if not root.is_dir():
        raise PrerequisiteError(
            f"There is no folder {root}",
            "Name a folder of images in GenEval's layout.",
        )
    directories = sorted(path for path in root.iterdir() if path.is_dir() and path.name.isdigit())
    if not directories:
        raise PrerequisiteError(
            f"{root} is not in GenEval's layout: it has no folder of a prompt",
            f"Expected {root.name}/00000/{_RECORD_FILE} and {root.name}/00000/samples/00000.png, and so on.",
        )
    return directories


def _record(directory: Path) -> Mapping[str, Any] | None:
    try:
        record = json.loads((directory / _RECORD_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and {"tag", "prompt"} <= record.keys() else None


def _images(directory: Path) -> list[Path]:
    samples = directory / "samples"
    return sorted(path for path in samples.iterdir() if _IMAGE_NAME.match(path.name)) if samples.is_dir() else []


def _prompt(
    directory: Path, record: Mapping[str, Any], *, prompt_id: str, images_per_prompt: int, size: WantedSize
) -> ImageFolder:
    """Read the images of one prompt of the evaluation set."""
    good: dict[Path, Sample] = {}
    unscored, faults = [], []
    first: dict[str, str] = {}
    images = _images(directory)
    for path in images:
        item_id = f"{prompt_id}/{path.stem}"
        fault = image_fault(path, f"{path.parent.parent.name}/samples/{path.name}", seen=first, size=size)
        if fault is None:
            good[path] = Sample(item_id, prompt_id, "image", record["prompt"], metadata=record)
        else:
            faults.append(fault)
            unscored.append(_unscored(item_id, record["tag"], f"{fault.kind}: {fault.detail}"))
    num_absent = max(0, images_per_prompt - len(images))
    if num_absent:
        detail = f"{len(images)} of {images_per_prompt} images"
        faults.append(FolderFault("too few images", directory.name, detail))
        unscored += _absent(prompt_id, record["tag"], num_absent, f"too few images: {detail}")
    return ImageFolder(tuple(good.values()), tuple(good), tuple(unscored), tuple(faults))


def _foreign(directory: Path, record: Mapping[str, Any]) -> ImageFolder:
    detail = f"{record['prompt']!r} is not in the evaluation set, or another folder has it"
    items = [f"folder-{directory.name}/{path.stem}" for path in _images(directory)]
    unscored = tuple(_unscored(item, str(record["tag"]), f"foreign prompt: {detail}") for item in items)
    return ImageFolder(unscored=unscored, faults=(FolderFault("foreign prompt", directory.name, detail),))


def _missing_prompt(record: Mapping[str, Any], prompt_id: str, images_per_prompt: int) -> ImageFolder:
    fault = FolderFault("missing prompt", record["prompt"], f"tag {record['tag']}, number {prompt_id}")
    unscored = _absent(prompt_id, record["tag"], images_per_prompt, "missing prompt: no folder has it")
    return ImageFolder(unscored=tuple(unscored), faults=(fault,))


def _absent(prompt_id: str, tag: str, number: int, reason: str) -> list[Score]:
    return [_unscored(f"{prompt_id}/missing-{place}", tag, reason) for place in range(1, number + 1)]


def _unscored(item_id: str, tag: str, reason: str) -> Score:
    return Score(item_id, item_id.partition("/")[0], None, None, "unscored", None, reason=reason, group=tag)
