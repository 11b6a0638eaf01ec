"""A small loop for the parts that are trained before the model is a backbone: Adam, a warm-up, a cosine, resumption."""

from __future__ import annotations

import functools
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from segros_train.files import append_jsonl, replace_file
from segros_train.weight_files import RESTART, read_weight_file

__all__ = ["Fit", "fit"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fit:
    """How to train a part.

    Attributes:
        steps: Updates.
        learning_rate: Peak rate of Adam, with a cosine to zero.
        warmup_steps: Updates of linear warm-up.
        checkpoint_steps: Updates between saved states.
    """

    steps: int
    learning_rate: float = 2e-3
    warmup_steps: int = 50
    checkpoint_steps: int = 100

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        warm = min(1.0, (step + 1) / self.warmup_steps)
        return self.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * step / self.steps))


def fit(module: nn.Module, loss: Callable[[int], Tensor], recipe: Fit, *, path: Path) -> None:
    """Train a module in place, going on from the state that a stopped run left.

    Args:
        module: Its parameters are trained, and whatever else of it is saved.
        loss: Number of the step to its loss, whose draws depend on that number alone.
        recipe: How to train.
        path: Where the state goes (weights, optimizer, step); the losses stand beside it, in a file of lines.
    """
    parameters = list(module.parameters())
    wanted = [parameter.requires_grad for parameter in parameters]
    module.requires_grad_(True)
    optimizer = torch.optim.Adam(parameters, lr=recipe.learning_rate, betas=(0.9, 0.99))
    first = 0
    if path.exists():
        saved = read_weight_file(path, remedy=RESTART)
        module.load_state_dict(saved["module"])
        optimizer.load_state_dict(saved["optimizer"])
        first = saved["step"]
    began = time.monotonic()
    for step in range(first, recipe.steps):
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate(step)
        value = loss(step)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        done = step + 1
        if done % 20 == 0:
            seconds = round(time.monotonic() - began, 1)
            append_jsonl(path.with_suffix(".jsonl"), {"step": done, "loss": round(value.item(), 5), "seconds": seconds})
            logger.info("%s: step %d, loss %.4f, %.0f s", path.stem, done, value.item(), seconds)
        if done % recipe.checkpoint_steps == 0 or done == recipe.steps:
            content = {"module": module.state_dict(), "optimizer": optimizer.state_dict(), "step": done}
            replace_file(path, functools.partial(torch.save, content))
    for parameter, value_ in zip(parameters, wanted, strict=True):
        parameter.requires_grad_(value_)
