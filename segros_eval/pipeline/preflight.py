"""Find everything a plan lacks before the first expensive second, each with its remedy, and estimate its cost."""

from __future__ import annotations

import dataclasses
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from segros_eval.pipeline.generate import build_samples
from segros_eval.pipeline.keys import shipped_weights
from segros_eval.pipeline.plan import Cell, RunPlan, Stage
from segros_eval.pipeline.tools import missing_tools
from segros_train.backbones.loading import family_of
from segros_train.errors import PrerequisiteError, Problem
from segros_train.files import data_folder, segros_home
from segros_train.types import BackboneCard, DataCard
from segros_train.weight_files import open_weight_file

__all__ = [
    "Cost",
    "check_device",
    "check_plan",
    "damaged",
    "estimate",
    "existing",
    "missing_data",
    "missing_weights",
]

BYTES_PER_PIXEL = 1.5
"""Of a PNG, generously: photographs take about 1.4, scenes of the embedded world 0.6."""
STATES_PER_WEIGHT = 3
"""A float32 weight in training state: itself and AdamW's two moments."""
CHECKPOINTS_KEPT = 2
GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a stage takes.

    Attributes:
        num_responses: Images or answers per evaluation; None where the data to count them is missing.
        num_updates: Updates of training.
        num_micro_steps: Micro-steps of training.
        num_samples: Captioned images and dialogues seen in training.
        disk_bytes: Images and checkpoints; None where their number or size is not known.
    """

    num_responses: tuple[int | None, ...]
    num_updates: int
    num_micro_steps: int
    num_samples: int
    disk_bytes: int | None


def check_plan(plan: RunPlan, *, out: Path, device: str) -> list[Problem]:
    """Return everything that would stop the plan, without repeats.

    Args:
        plan: What will be done.
        out: Folder of run folders.
        device: Torch device, or `"auto"`.
    """
    problems = [*_unwritable(out), *check_device(device)]
    for stage in plan.stages:
        if stage.checkpoint is not None:
            problems += [*damaged(stage.checkpoint), *missing_weights(stage.card, stage.checkpoint)]
        else:
            problems += missing_weights(stage.card)
        if stage.data is not None and stage.recipe is not None:
            problems += missing_data(stage.data, dialogues=stage.recipe.i2t_weight > 0)
            problems += _missing_latents(stage)
        for cell in stage.cells:
            problems += _evaluation(stage, cell)
    problems += _too_big(plan, out)
    return list(dict.fromkeys(problems))


def _missing_latents(stage: Stage) -> Iterator[Problem]:
    """Yield what keeps a stage from reading the latent cache that it shall read."""
    if stage.latents is None or stage.data is None:
        return
    if stage.data.crop != "fixed":
        what = f"--latents reads one crop of each image, the data {stage.data.name} are cropped anew each time"
        yield Problem(what, "Add --set crop=fixed, or leave --latents out.")
    folder = segros_home() / "latents" / stage.latents
    if not (folder / "index.json").is_file():
        remedy = f"Make it: segros data encode {stage.card.name} --data {stage.data.name}; or leave --latents out."
        yield Problem(f"The latent cache of {stage.card.name} and {stage.data.name} is missing: no {folder}", remedy)


def estimate(stage: Stage) -> Cost:
    """Return what a stage takes."""
    counts = tuple(_num_responses(stage, cell) for cell in stage.cells)
    drawn = [count for cell, count in zip(stage.cells, counts, strict=True) if cell.task.kind == "image"]
    known = [count for count in drawn if count is not None]
    disk: int | None = None
    if len(known) == len(drawn):
        disk = int(sum(known) * stage.card.image_size_px**2 * BYTES_PER_PIXEL)
    recipe = stage.recipe
    if recipe is None:
        return Cost(counts, 0, 0, 0, disk)
    per_micro_step = recipe.batch_size
    if recipe.i2t_weight > 0:
        per_micro_step += recipe.i2t_batch_size or recipe.batch_size
    weights = num_weights(stage.card)
    if disk is not None:
        disk = None if weights is None else disk + weights * 4 * (STATES_PER_WEIGHT + 1) * CHECKPOINTS_KEPT
    return Cost(counts, recipe.optimizer_steps, recipe.micro_steps, recipe.micro_steps * per_micro_step, disk)


def missing_weights(card: BackboneCard, checkpoint: Path | None = None) -> list[Problem]:
    """Return what a backbone's weights lack; a checkpoint may lie over published ones."""
    return list(family_of(card).locate(card, checkpoint).missing)


def damaged(checkpoint: Path) -> list[Problem]:
    """Return what is wrong with a checkpoint's tensors, as far as their headers tell."""
    remedy = "Take another checkpoint, or train again."
    weights = sorted(checkpoint.glob("*.safetensors"))
    if not weights:
        return [Problem(f"Checkpoint {checkpoint} is incomplete: it holds no safetensors file", remedy)]
    problems: list[Problem] = []
    for path in weights:
        try:
            _num_numbers(path, remedy=remedy)
        except PrerequisiteError as error:
            problems += error.problems
    return problems


def missing_data(card: DataCard, *, dialogues: bool = True) -> list[Problem]:
    """Return what training data lacks on this machine.

    Args:
        card: The data.
        dialogues: Whether its dialogues are needed.
    """
    problems: list[Problem] = []
    if dialogues and card.instruction is None:
        remedy = "Train without the i2t loss (--set i2t_weight=0), or choose other data with --data."
        problems.append(Problem(f"Training data {card.name} has no dialogues for the i2t loss", remedy))
    for source in (card.generation, card.instruction if dialogues else None):
        kind, _, place = (source or "shapes").partition(":")
        if kind == "shapes":
            continue
        if kind == "hub":
            folder = _hub_cache() / f"datasets--{place.replace('/', '--')}"
            remedy = f"Fetch it: hf download --repo-type dataset {place}."
        else:
            folder = data_folder(place)
            remedy = f"Put it there, or choose other data with --data. {card.notes}".strip()
        if not folder.is_dir():
            problems.append(Problem(f"Training data {card.name} ({source}) is missing: no folder {folder}", remedy))
    return problems


def num_weights(card: BackboneCard) -> int | None:
    """Return the number of weights of a backbone that comes with them, None where it is not known."""
    folder = shipped_weights(card)
    return None if folder is None else sum(_num_numbers(path) for path in folder.glob("*.safetensors"))


def _num_numbers(path: Path, *, remedy: str = "Reinstall segros.") -> int:
    """Count the numbers in a safetensors file by its header alone."""
    with open_weight_file(path, remedy=remedy) as file:
        return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())


def _hub_cache() -> Path:
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)


def _evaluation(stage: Stage, cell: Cell) -> Iterator[Problem]:
    yield from missing_tools(cell.task, stage.card.world)
    if cell.task.kind == "harness":
        return
    try:
        if not build_samples(stage, cell):
            yield Problem(f"{cell.task.title} has nothing to ask", "Raise --limit.")
    except PrerequisiteError as error:
        yield from error.problems


def _num_responses(stage: Stage, cell: Cell) -> int | None:
    if cell.task.kind == "harness":
        return None
    try:
        return len(build_samples(stage, cell))
    except PrerequisiteError:
        return None


def existing(path: Path) -> Path:
    """Return a path, or the nearest one above it that is there and may be seen."""
    while not os.path.exists(path):  # Path.exists raises where a folder above may not be entered.
        path = path.parent
    return path


def _unwritable(out: Path) -> Iterator[Problem]:
    folder = existing(out)
    remedy = "Choose another folder with --out, or mend its rights."
    if not folder.is_dir():
        yield Problem(f"Cannot write to {out}: {folder} is a file", remedy)
        return
    try:
        with tempfile.TemporaryFile(dir=folder):
            return
    except OSError as error:
        yield Problem(f"Cannot write to {out}: {error.strerror}", remedy)


def check_device(device: str) -> Iterator[Problem]:
    """Yield what keeps a device from being used: it is unknown, or not there."""
    if device in ("auto", "cpu"):
        return
    import torch

    kind, _, index = device.partition(":")
    if kind != "cuda" or not (index.isdecimal() or device == "cuda"):
        yield Problem(f"--device takes auto, cpu or cuda, found {device!r}", "Leave it out to take the best there is.")
    elif not torch.cuda.is_available():
        yield Problem(f"--device {device}: torch finds no CUDA device here", "Use --device cpu, or mend the driver.")
    elif index and int(index) >= torch.cuda.device_count():
        yield Problem(f"--device {device}: the last one here is cuda:{torch.cuda.device_count() - 1}", "Take that one.")


def _too_big(plan: RunPlan, out: Path) -> Iterator[Problem]:
    needed, free = sum(estimate(stage).disk_bytes or 0 for stage in plan.stages), shutil.disk_usage(existing(out)).free
    if needed > free:
        yield Problem(
            f"The run writes about {needed / GIB:.1f} GiB, {out} has {free / GIB:.1f} GiB free",
            "Free space, or choose another folder with --out.",
        )
    weights = max((num_weights(stage.card) or 0 for stage in plan.stages if stage.trains), default=0)
    needed, total = weights * 4 * (STATES_PER_WEIGHT + 1), _memory_bytes()
    if total is not None and needed > total:
        yield Problem(
            f"Training takes at least {needed / GIB:.1f} GiB of memory, this machine has {total / GIB:.1f} GiB",
            "Choose a smaller backbone or another machine.",
        )


def _memory_bytes() -> int | None:
    """Return the memory of this machine; None where the system does not tell."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return None
