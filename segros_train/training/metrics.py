"""Losses on their way from the device to `metrics.jsonl` and to whoever watches."""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from segros_train.errors import PrerequisiteError
from segros_train.files import append_jsonl, read_jsonl, write_text

__all__ = ["Metrics", "NonFiniteLossError", "StepReport", "Update"]

RATE_WINDOW = 50
_NOT_IN_FILE = frozenset({"num_steps", "steps_per_second", "samples_per_second", "seconds_left"})


class NonFiniteLossError(PrerequisiteError):
    """Say that a loss or gradient became NaN or infinite.

    Attributes:
        step: Number of the update, counted from 1.
        item_ids: Items of the micro-batches whose loss is not finite; of the whole update if only the gradient is not.
        checkpoint: Last good checkpoint, None if there is none yet.
    """

    def __init__(self, message: str, *, step: int, item_ids: tuple[str, ...], checkpoint: Path | None) -> None:
        super().__init__(message)
        self.step, self.item_ids, self.checkpoint = step, item_ids, checkpoint


@dataclass(frozen=True)
class StepReport:
    """What one update did.

    Attributes:
        step: Number of the update, counted from 1.
        num_steps: Updates of the whole recipe.
        loss: Joint loss (Eq. 13), mean over micro-steps and processes.
        t2i_loss: Its text-to-image part.
        i2t_loss: Its image-to-text part, unweighted; None where the recipe takes none.
        grad_norm: Global norm of the gradient before clipping.
        learning_rate: Rate of this update.
        num_samples: Samples seen since the run began, of both tasks.
        seconds: Time in training since the run began, over all restarts.
        steps_per_second: Over the last updates.
        samples_per_second: Over the last updates.
        seconds_left: Until the end of the recipe at that rate.
    """

    step: int
    num_steps: int
    loss: float
    t2i_loss: float
    i2t_loss: float | None
    grad_norm: float
    learning_rate: float
    num_samples: int
    seconds: float
    steps_per_second: float
    samples_per_second: float
    seconds_left: float


@dataclass(frozen=True)
class Update:
    """An update whose losses still lie on the device.

    Attributes:
        step: Number of the update, counted from 1.
        losses: [micro-steps, 2 or 3] joint, text-to-image and, where taken, image-to-text loss.
        grad_norm: Scalar.
        learning_rate: Rate of this update.
        item_ids: Per micro-step, the items it saw.
        num_samples: Samples seen since the run began.
        seconds: Time in training since the run began.
    """

    step: int
    losses: Tensor
    grad_norm: Tensor
    learning_rate: float
    item_ids: tuple[tuple[str, ...], ...]
    num_samples: int
    seconds: float


class Metrics:
    """Collects updates without waiting for the device, and reads them all at once.

    Args:
        path: `metrics.jsonl`; one line per update.
        num_steps: Updates of the whole recipe.
        accelerator: Averages over processes.
        report: Told of every update, in order, on the main process.
    """

    def __init__(
        self,
        path: Path,
        num_steps: int,
        *,
        accelerator: Accelerator,
        report: Callable[[StepReport], None] | None,
    ) -> None:
        self._path, self._num_steps, self._accelerator, self._report = path, num_steps, accelerator, report
        self._updates: list[Update] = []
        self._recent: deque[tuple[int, int, float]] = deque(maxlen=RATE_WINDOW)

    def start(self, *, step: int, num_samples: int, seconds: float) -> None:
        """Begin after `step` updates: lines of later updates, lost with a crash, are dropped."""
        self._recent.append((step, num_samples, seconds))
        if not self._accelerator.is_main_process or not self._path.exists():
            return
        kept = "".join(json.dumps(line) + "\n" for line in read_jsonl(self._path) if line["step"] <= step)
        write_text(self._path, kept)

    def add(self, update: Update) -> None:
        """Take in an update."""
        self._updates.append(update)

    def read(self, *, checkpoint: Path | None) -> None:
        """Wait for the device, then write and report every update taken in since the last reading.

        Args:
            checkpoint: Last good checkpoint, for the message of the error.

        Raises:
            NonFiniteLossError: If a loss or gradient is NaN or infinite.
        """
        updates, self._updates = self._updates, []
        if not updates:
            return
        values = torch.stack([torch.cat([update.losses.mean(0), update.grad_norm.view(1)]) for update in updates])
        shared = self._accelerator.reduce(values, "mean")
        for update, means in zip(updates, shared.tolist(), strict=True):
            if not all(map(math.isfinite, means)):
                raise self._non_finite(update, means, checkpoint)
            self._write(update, means)

    def _write(self, update: Update, means: Sequence[float]) -> None:
        if not self._accelerator.is_main_process:
            return
        first_step, first_sample, first_second = self._recent[0]
        self._recent.append((update.step, update.num_samples, update.seconds))
        elapsed = max(update.seconds - first_second, 1e-9)
        rate = (update.step - first_step) / elapsed
        report = StepReport(
            step=update.step,
            num_steps=self._num_steps,
            loss=means[0],
            t2i_loss=means[1],
            i2t_loss=means[2] if len(means) == 4 else None,
            grad_norm=means[-1],
            learning_rate=update.learning_rate,
            num_samples=update.num_samples,
            seconds=round(update.seconds, 3),
            steps_per_second=rate,
            samples_per_second=(update.num_samples - first_sample) / elapsed,
            seconds_left=(self._num_steps - update.step) / rate,
        )
        line = asdict(report)
        append_jsonl(self._path, {name: value for name, value in line.items() if name not in _NOT_IN_FILE})
        if self._report is not None:
            self._report(report)

    def _non_finite(self, update: Update, means: Sequence[float], checkpoint: Path | None) -> NonFiniteLossError:
        finite = update.losses.isfinite().all(1).tolist()
        own = [ids for ids, whole in zip(update.item_ids, finite, strict=True) if not whole]
        culprits = gather_object(own) or gather_object(list(update.item_ids))
        item_ids = tuple(item_id for ids in culprits for item_id in ids)
        names = ("loss", "t2i loss", "i2t loss")[: len(means) - 1] + ("gradient norm",)
        found = ", ".join(f"{name} {value:.4g}" for name, value in zip(names, means, strict=True))
        return NonFiniteLossError(
            f"Training stopped: update {update.step} is not finite ({found}). Items: {', '.join(item_ids)}. "
            f"Last good checkpoint: {checkpoint or 'none yet'}. Look at these items, or lower the learning rate.",
            step=update.step,
            item_ids=item_ids,
            checkpoint=checkpoint,
        )
