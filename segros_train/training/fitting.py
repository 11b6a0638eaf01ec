"""What fits on a device: the peak memory of a training step and of a draw, and the fastest settings within it."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from segros_train.draws import Draws
from segros_train.errors import PrerequisiteError
from segros_train.training.memory import Count, OverLimitError, counting, fake_twin
from segros_train.training.objective import Objective
from segros_train.types import GenerationBatch, InstructionBatch, Turn

if TYPE_CHECKING:
    from segros_train.backbone import Backbone
    from segros_train.method import Method
    from segros_train.types import Checkpointing, GenerationSettings, Recipe

__all__ = [
    "Batch",
    "Choice",
    "choose_batch",
    "choose_checkpointing",
    "drawing_peak",
    "fitting",
    "fitting_batch",
    "training_peak",
]

CHECKPOINTING: tuple[Checkpointing, ...] = ("none", "blocks", "all")
"""From the fastest to the one that takes least memory."""
CONTEXT_BYTES = 2**30
"""CUDA's context and the libraries' workspaces, which no tensor shows: an estimate, not measured here."""
BATCH_SIZES = (96, 64, 48, 32, 24, 16, 12, 8, 6, 4, 3, 2, 1)
"""Tried for drawing: at 96 Harmon-1.5B drew fastest of what was measured, and a card's rate does not grow for ever."""
CAPTION = " ".join(["a red circle and a blue square ,"] * 9)
LAST_STEPS = 2
"""Iterations of a draw that are counted: the last take the most, and the second finds what the first left behind."""
SHARE = 0.93
"""Share of a device that may be planned with; the rest is for blocks that the allocator cannot use whole."""


def training_peak(backbone: Backbone, method: Method, recipe: Recipe, *, limit: float = math.inf) -> int:
    """Return the most bytes that stand during one micro-step, losses taken back one after the other.

    Args:
        backbone: Any built backbone, on any device or none; it is left as it is.
        method: What decides the supervision.
        recipe: Its micro-batch and `checkpointing` count, None as `"none"`; its precision is taken to be bf16.
        limit: Bytes that are too many, so that counting need not go on.

    Raises:
        OverLimitError: If more than `limit` stand.
    """
    with counting() as count:
        count.limit = limit - CONTEXT_BYTES
        twin: Any = fake_twin(backbone, count).train()
        twin.set_checkpointing(recipe.checkpointing or "none")
        trained = [p for p in twin.parameters() if p.requires_grad]
        moments = [count.empty(p.shape, p.dtype) for p in trained for _ in range(2)]
        recipe = replace(recipe, precision="bf16")
        if recipe.accumulation > 1:
            for p in trained:
                p.grad = count.empty(p.shape, p.dtype)
        batches = [batch for batch in _batches(twin, recipe, count) if batch is not None]
        count.peak = count.live
        objective = Objective(twin, method, recipe, seed=0)
        for batch in batches:
            loss = objective(batch, 0) / recipe.accumulation
            # The plain call of the engine: `backward` would leave the modes off while blocks are computed again.
            torch.autograd.Variable._execution_engine.run_backward(
                (loss,), (torch.ones_like(loss),), False, False, (), allow_unreachable=True, accumulate_grad=True
            )
        del moments
    return count.peak + CONTEXT_BYTES


@dataclass(frozen=True)
class Choice:
    """What is recomputed in training, and the most bytes that then stand on the device."""

    checkpointing: Checkpointing
    peak: int


def choose_checkpointing(backbone: Backbone, method: Method, recipe: Recipe, *, capacity: int) -> Choice:
    """Return the fastest way to train within a device's memory: what recomputes least.

    Args:
        backbone: As for `training_peak`.
        method: What decides the supervision.
        recipe: Its `checkpointing` is not read.
        capacity: Bytes of the device.

    Raises:
        PrerequisiteError: If even recomputing all that can be takes more.
    """
    for checkpointing in CHECKPOINTING:
        with suppress(OverLimitError):
            peak = training_peak(backbone, method, replace(recipe, checkpointing=checkpointing), limit=SHARE * capacity)
            return Choice(checkpointing, peak)
    ways = (
        f"--set recipe.batch_size={max(1, recipe.batch_size // 2)} --set recipe.accumulation={2 * recipe.accumulation}"
    )
    raise PrerequisiteError(
        f"Training {backbone.card.title} at a micro-batch of {recipe.batch_size} takes more than "
        f"{SHARE * capacity / 2**30:.1f} GiB with everything recomputed, and the device has {capacity / 2**30:.1f}: "
        f"take {ways}."
    )


def fitting(backbone: Backbone, method: Method, recipe: Recipe) -> tuple[Recipe, Choice | None]:
    """Return a recipe that says what to recompute, and how that was chosen; a CPU, and a recipe that says, as it is.

    Raises:
        PrerequisiteError: If nothing fits the GPU that holds the backbone.
    """
    device = next(backbone.parameters()).device
    if recipe.checkpointing is not None or device.type != "cuda":
        return recipe, None
    choice = choose_checkpointing(backbone, method, recipe, capacity=_capacity(device))
    return replace(recipe, checkpointing=choice.checkpointing), choice


def _capacity(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).total_memory


def drawing_peak(backbone: Backbone, settings: GenerationSettings, batch_size: int, *, limit: float = math.inf) -> int:
    """Return the most bytes that stand while a batch is drawn.

    Args:
        backbone: Any built backbone, on any device or none, its weights in the types that they are drawn with.
        settings: Sampling settings.
        batch_size: Images drawn at once, each from a caption of about 60 words.
        limit: As for `training_peak`.

    Raises:
        OverLimitError: If more than `limit` stand.
    """
    with counting() as count:
        count.limit = limit - CONTEXT_BYTES
        twin: Any = fake_twin(backbone, count).eval()
        twin.last_steps = LAST_STEPS
        prompts = [f"{CAPTION} {number}" for number in range(batch_size)]
        for _ in twin.generate(prompts, seeds=range(batch_size), settings=replace(settings, batch_size=None)):
            pass
    return count.peak + CONTEXT_BYTES


@dataclass(frozen=True)
class Batch:
    """How many images are drawn at once, and the most bytes that then stand on the device."""

    batch_size: int
    peak: int


def choose_batch(backbone: Backbone, settings: GenerationSettings, *, capacity: int) -> Batch | None:
    """Return the first of `BATCH_SIZES` that a device holds; None if it holds none by the count.

    Args:
        backbone: As for `drawing_peak`.
        settings: Sampling settings.
        capacity: Bytes of the device.
    """
    for size in BATCH_SIZES:
        with suppress(OverLimitError):
            return Batch(size, drawing_peak(backbone, settings, size, limit=SHARE * capacity))
    return None


def fitting_batch(backbone: Backbone, settings: GenerationSettings, device: str) -> Batch | None:
    """Return what a GPU holds of a draw; None on a CPU, and where the settings say how many."""
    if settings.batch_size is not None or torch.device(device).type != "cuda":
        return None
    return choose_batch(backbone, settings, capacity=_capacity(torch.device(device)))


def _batches(backbone: Any, recipe: Recipe, count: Count) -> tuple[GenerationBatch, InstructionBatch | None]:
    """Make a micro-batch of each task: captions of about 60 words, dialogues of 15 and 60."""
    side = backbone.card.image_size_px
    question = " ".join(["what is the red circle"] * 3)
    size = recipe.batch_size
    images = count.empty((size, 3, side, side), torch.float32)
    ids, draws = tuple(map(str, range(size))), Draws(0, 0, tuple(range(size)))
    generation = GenerationBatch(images, (CAPTION,) * size, ids, draws)
    if recipe.i2t_weight <= 0:
        return generation, None
    size = recipe.i2t_batch_size or size
    prepare = backbone.image_transform("understanding")
    side = prepare.size_px
    images = count.empty((size, 3, side, side), torch.float32)
    turns = ((Turn(question, CAPTION),),) * size
    return generation, InstructionBatch(images, turns, tuple(map(str, range(size))))
