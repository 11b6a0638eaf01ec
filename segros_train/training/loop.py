"""The training loop, one for every method and backbone.

Each micro-step draws a generation micro-batch, lets the method decide its supervision and the backbone
realise it, and adds the image-to-text loss of an instruction micro-batch (Eq. 13). What an item draws depends
on (seed, its place in the order) alone, so a run that was killed ends with the weights of one that was not.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import GradientAccumulationPlugin, broadcast_object_list

from segros_train.backbones.common.precision import attention_kernel, autocast_dtype
from segros_train.data.batches import MicroBatch, Share, generation_batches, instruction_batches, stream
from segros_train.data.latent_cache import WithLatents
from segros_train.data.reading import DataError
from segros_train.equations import joint_objective
from segros_train.errors import PrerequisiteError, memory_shortage_named
from segros_train.training.checkpoint import (
    Checkpoint,
    Progress,
    load_training_state,
    newest_checkpoint,
    save_checkpoint,
    training_state,
    whole_weights,
)
from segros_train.training.metrics import Metrics, NonFiniteLossError, StepReport, Update
from segros_train.training.objective import Objective
from segros_train.training.optim import build_optimizer, keep_master_weights, learning_rate, set_learning_rate
from segros_train.types import GenerationBatch, InstructionBatch

if TYPE_CHECKING:
    from torch import Tensor

    from segros_train.backbone import Backbone
    from segros_train.data.samples import GenerationSource, InstructionSource
    from segros_train.method import Method
    from segros_train.types import Crop, Recipe

__all__ = ["NonFiniteLossError", "StepReport", "TrainOutcome", "train"]

METRICS = "metrics.jsonl"
CHECKPOINTS = "checkpoints"
# Reading a loss waits for the device. A CPU computes in step anyway, so there every update is read at once.
UPDATES_PER_READING = 20

Batch = TypeVar("Batch", GenerationBatch, InstructionBatch)
_Drawn = Iterator[tuple[MicroBatch[GenerationBatch], MicroBatch[InstructionBatch] | None]]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainOutcome:
    """How a call of `train` ended.

    Attributes:
        checkpoint: The last checkpoint: load the trained backbone from here.
        step: Updates made.
        finished: Whether the recipe is complete; False after `stop_after`.
        seconds: Time in training, over all restarts.
        num_samples: Samples seen, of both tasks and all processes.
    """

    checkpoint: Path
    step: int
    finished: bool
    seconds: float
    num_samples: int


def train(
    backbone: Backbone,
    method: Method,
    *,
    recipe: Recipe,
    generation: GenerationSource,
    instruction: InstructionSource | None,
    directory: Path,
    seed: int,
    report: Callable[[StepReport], None] | None = None,
    checkpoint_seconds: float = 600.0,
    checkpoint_steps: int | None = None,
    stop_after: int | None = None,
    crop: Crop = "random",
    num_workers: int = 0,
    max_unreadable: int = 0,
) -> TrainOutcome:
    """Fine-tune a backbone, going on from the newest whole checkpoint in `directory`.

    Args:
        backbone: What to train, in place, attention and hint slot configured; a single process trains where it stands.
        method: What decides the supervision.
        recipe: How to train.
        generation: Images with captions.
        instruction: Images with dialogues; may be None where `recipe.i2t_weight` is 0.
        directory: Home of `metrics.jsonl` and `checkpoints/`.
        seed: Source of every draw.
        report: Told of every update, in order, on the main process.
        checkpoint_seconds: Longest time between checkpoints.
        checkpoint_steps: Most updates between checkpoints; None leaves it to the time.
        stop_after: Stop with a checkpoint once this many updates are made; None completes the recipe.
        crop: Whether images to draw are cropped anew each time, or alike.
        num_workers: Processes that read data ahead, per task; never changes a number.
        max_unreadable: Items per process that may be left out of their batch because they cannot be read.

    Raises:
        NonFiniteLossError: If a loss or gradient is NaN or infinite.
        MemoryShortageError: If a step needs more memory than there is.
        DataError: If more than `max_unreadable` items cannot be read, or a batch has none left.
        PrerequisiteError: If the folder holds another run or cannot be written.
        ValueError: If recipe, sources and backbone do not fit together.
    """
    last_step = _last_step(recipe, instruction, stop_after)
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices), memory_shortage_named("Training", _smaller(recipe)):
        trainer = _Trainer(
            backbone,
            method,
            recipe=recipe,
            sources=(generation, instruction if recipe.i2t_weight > 0 else None),
            directory=directory,
            seed=seed,
            report=report,
            crop=crop,
            max_unreadable=max_unreadable,
        )
        trainer.resume()
        with attention_kernel(trainer.device, autocast_dtype(recipe.precision, trainer.device)):
            trainer.run(last_step, pace=_Pace(checkpoint_seconds, checkpoint_steps), num_workers=num_workers)
        return trainer.outcome()


def _smaller(recipe: Recipe) -> str:
    """Say how the same updates take less memory."""
    sizes = {"accumulation": 2 * recipe.accumulation, "batch_size": recipe.batch_size // 2}
    if recipe.i2t_batch_size is not None:
        sizes["i2t_batch_size"] = recipe.i2t_batch_size // 2
    halved = " ".join(f"--set recipe.{name}={size}" for name, size in sizes.items())
    ways = ["--set checkpointing=all"] if recipe.checkpointing in ("none", "blocks") else []
    ways += [halved] if all(sizes.values()) else []
    return f"take {', or '.join([*ways, 'another device with --device'])}"


@dataclass(frozen=True)
class _Pace:
    """How often to write checkpoints."""

    seconds: float
    steps: int | None


class _Trainer:
    """One call of `train`: the backbone, its optimizer, and how far they have come."""

    def __init__(
        self,
        backbone: Backbone,
        method: Method,
        *,
        recipe: Recipe,
        sources: tuple[GenerationSource, InstructionSource | None],
        directory: Path,
        seed: int,
        report: Callable[[StepReport], None] | None,
        crop: Crop,
        max_unreadable: int,
    ) -> None:
        # Precision is the objective's matter: Accelerate fixes it once per process, and a process may train twice.
        # Accumulation is the recipe's, whatever the launcher's environment says.
        self.accelerator = Accelerator(
            mixed_precision="no",
            device_placement=False,
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        )
        if self.accelerator.num_processes > 1:
            backbone.to(self.accelerator.device)
        if backbone.conditioning.text_dropout != recipe.text_dropout:
            backbone.configure(replace(backbone.conditioning, text_dropout=recipe.text_dropout))
        keep_master_weights(backbone)
        backbone.set_checkpointing(recipe.checkpointing or "none")
        self.backbone, self.recipe, self.seed, self.sources = backbone, recipe, seed, sources
        self.device = next(backbone.parameters()).device
        self.folder, self.crop, self.max_unreadable = directory / CHECKPOINTS, crop, max_unreadable
        self.share = Share(self.accelerator.process_index, self.accelerator.num_processes)
        latents = sources[0].cache.folder.name if isinstance(sources[0], WithLatents) else None
        drawn = {"seed": seed, "crop": crop, "latents": latents, "num_processes": self.share.num_ranks}
        self.identity = _identity(backbone, method, recipe, sources) | drawn
        objective = Objective(backbone, method, recipe, seed=seed, rank=self.share.rank)
        self.objective, self.optimizer = self.accelerator.prepare(objective, build_optimizer(backbone, recipe))
        self.metrics = Metrics(directory / METRICS, recipe.optimizer_steps, accelerator=self.accelerator, report=report)
        self.progress = Progress()
        self.checkpoint: Checkpoint | None = None
        self.began = 0.0

    def resume(self) -> None:
        """Go on from the newest whole checkpoint, if there is one."""
        found = [newest_checkpoint(self.folder) if self.accelerator.is_main_process else None]
        self.checkpoint = broadcast_object_list(found)[0]
        if self.checkpoint is None:
            return
        _require_same_run(self.checkpoint, self.identity)
        self.progress = self.checkpoint.progress
        if not self.progress.finished:
            load_training_state(self.checkpoint, self.backbone, self.optimizer)
            logger.info("Going on from %s.", self.checkpoint.path)

    def run(self, last_step: int, *, pace: _Pace, num_workers: int) -> None:
        """Train up to `last_step` updates and write a checkpoint, unless that is done already."""
        progress = self.progress
        if progress.finished or progress.step >= last_step:
            return
        self.metrics.start(step=progress.step, num_samples=progress.num_samples, seconds=progress.seconds)
        self.objective.train()
        batches = self._batches(last_step, num_workers)
        self.began = time.monotonic() - progress.seconds
        saved = time.monotonic()
        while self.progress.step < last_step:
            self._update(batches)
            step = self.progress.step
            save_due = step == last_step or (pace.steps is not None and step % pace.steps == 0)
            if save_due or self.device.type == "cpu" or step % UPDATES_PER_READING == 0:
                self.metrics.read(checkpoint=self.checkpoint.path if self.checkpoint else None)
                if save_due or self._main_process_says(time.monotonic() - saved >= pace.seconds):
                    self._save()
                    saved = time.monotonic()

    def outcome(self) -> TrainOutcome:
        """Say how the call ended."""
        assert self.checkpoint is not None
        progress = self.checkpoint.progress
        return TrainOutcome(
            checkpoint=self.checkpoint.path,
            step=progress.step,
            finished=progress.finished,
            seconds=progress.seconds,
            num_samples=progress.num_samples,
        )

    def _batches(self, last_step: int, num_workers: int) -> _Drawn:
        recipe, (generation, instruction) = self.recipe, self.sources
        span = {
            "start": self.progress.step * recipe.accumulation,
            "stop": last_step * recipe.accumulation,
            "num_workers": num_workers,
        }
        images = generation_batches(
            generation,
            transform=self.backbone.image_transform("generation"),
            batch_size=recipe.batch_size,
            seed=self.seed,
            share=self.share,
            crop=self.crop,
        )
        if instruction is None:
            return zip(stream(images, **span), repeat(None), strict=False)
        dialogues = instruction_batches(
            instruction,
            transform=self.backbone.image_transform("understanding"),
            batch_size=recipe.i2t_batch_size or recipe.batch_size,
            seed=self.seed,
            share=self.share,
        )
        return zip(stream(images, **span), stream(dialogues, **span), strict=True)

    def _update(self, batches: _Drawn) -> None:
        step, accumulation = self.progress.step, self.recipe.accumulation
        rate = learning_rate(self.recipe, step)
        set_learning_rate(self.optimizer, rate)
        losses, item_ids = [], []
        for micro in range(accumulation):
            drawn, drawn_dialogues = next(batches)
            generation = self._ready(drawn)
            instruction = None if drawn_dialogues is None else self._ready(drawn_dialogues)
            losses.append(self._micro_step(generation, instruction, step * accumulation + micro))
            item_ids.append(generation.item_ids + (instruction.item_ids if instruction else ()))
        grad_norm = self.accelerator.clip_grad_norm_(self.objective.parameters(), self.recipe.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        progress = self.progress
        self.progress = replace(
            progress,
            step=step + 1,
            num_samples=progress.num_samples + sum(map(len, item_ids)) * self.share.num_ranks,
            seconds=time.monotonic() - self.began,
        )
        self.metrics.add(
            Update(
                step=self.progress.step,
                losses=torch.stack(losses),
                grad_norm=grad_norm,
                learning_rate=rate,
                item_ids=tuple(item_ids),
                num_samples=self.progress.num_samples,
                seconds=self.progress.seconds,
            )
        )

    def _micro_step(self, generation: GenerationBatch, instruction: InstructionBatch | None, micro_step: int) -> Tensor:
        """Add the gradient of one micro-step; return its joint, text-to-image and, where taken, image-to-text loss."""
        # Each loss goes back before the next is computed, so that two graphs never stand at once.
        recipe, losses = self.recipe, []
        tasks = [(generation, 1.0), (instruction, recipe.i2t_weight)][: 1 if instruction is None else 2]
        for batch, weight in tasks:
            syncs = batch is tasks[-1][0] and (micro_step + 1) % recipe.accumulation == 0
            with nullcontext() if syncs else self.accelerator.no_sync(self.objective):
                loss = self.objective(batch, micro_step)
                self.accelerator.backward(loss * (weight / recipe.accumulation))
            losses.append(loss.detach())
        joint = joint_objective(losses[0], losses[1] if len(losses) > 1 else None, recipe.i2t_weight)
        return torch.stack([joint, *losses])

    def _ready(self, drawn: MicroBatch[Batch]) -> Batch:
        """Put a batch on the device, once it is settled that what is missing from it may be missing."""
        known = set(self.progress.unreadable)
        for item, message in drawn.unreadable:
            if item in known:
                continue
            known.add(item)
            if len(known) > self.max_unreadable:
                raise DataError(
                    f"{message} {len(known)} unreadable items, {self.max_unreadable} allowed: mend the data set, "
                    "or allow more with max_unreadable to leave them out."
                )
            logger.warning("%s It is left out (%d of at most %d).", message, len(known), self.max_unreadable)
        self.progress = replace(self.progress, unreadable=tuple(sorted(known)))
        if drawn.batch is None:
            raise DataError(f"Not one item of a batch can be read; the last: {drawn.unreadable[-1][1]}")
        return replace(drawn.batch, images=drawn.batch.images.to(self.device, non_blocking=True))

    def _save(self) -> None:
        finished = self.progress.step == self.recipe.optimizer_steps
        writes = self.accelerator.is_main_process
        # Every process takes part in gathering what is sharded; one keeps and writes it.
        state = {} if finished else training_state(self.backbone, self.optimizer, keep=writes)
        with whole_weights(self.backbone):
            if writes:
                self.checkpoint = save_checkpoint(
                    self.folder,
                    replace(self.progress, finished=finished),
                    identity=self.identity,
                    write_backbone=self.backbone.save_pretrained,
                    state=state,
                )
        self.checkpoint = broadcast_object_list([self.checkpoint])[0]

    def _main_process_says(self, value: bool) -> bool:
        """Return the main process's value, so that all processes do the same."""
        return bool(broadcast_object_list([value])[0])


def _last_step(recipe: Recipe, instruction: InstructionSource | None, stop_after: int | None) -> int:
    """Return how many updates are to be made in all."""
    if stop_after is not None and stop_after < 1:
        raise ValueError(f"stop_after must be at least 1, found {stop_after}.")
    if recipe.i2t_weight > 0 and instruction is None:
        raise ValueError(f"i2t_weight is {recipe.i2t_weight}, but there is no instruction data.")
    return min(stop_after or recipe.optimizer_steps, recipe.optimizer_steps)


def _identity(
    backbone: Backbone, method: Method, recipe: Recipe, sources: tuple[GenerationSource, InstructionSource | None]
) -> dict[str, Any]:
    """Return what determines a run beside its draws, as it reads back from JSON."""
    generation, instruction = sources
    return {
        "backbone": backbone.card.name,
        "realisation": asdict(backbone.conditioning),
        "method": repr(method),
        "recipe": {
            name: list(value) if name == "betas" else value
            for name, value in asdict(recipe).items()
            if name != "checkpointing"
        },
        "num_generation_items": len(generation),
        "num_instruction_items": None if instruction is None else len(instruction),
    }


def _require_same_run(checkpoint: Checkpoint, identity: dict[str, Any]) -> None:
    found = checkpoint.identity
    differing = sorted(name for name in identity.keys() | found.keys() if identity.get(name) != found.get(name))
    if differing:
        changes = "; ".join(f"{name} was {found.get(name)}, now {identity.get(name)}" for name in differing)
        raise PrerequisiteError(
            f"{checkpoint.path} belongs to another run: {changes}. Give the same settings to go on, "
            "or choose another folder with --out."
        )
