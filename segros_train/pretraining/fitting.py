"""A small loop for the parts of a tiny backbone's pretraining: AdamW, a warm-up, a falling rate, resumption."""

from __future__ import annotations

import copy
import functools
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from segros_train.files import append_jsonl, replace_file
from segros_train.weight_files import RESTART, read_weight_file

__all__ = ["Averaged", "PartRecipe", "fit"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PartRecipe:
    """How one part is pretrained with AdamW.

    Attributes:
        steps: Updates.
        batch_size: Scenes per update.
        learning_rate: Peak rate, with a linear warm-up and a cosine to zero.
        held_share: Share of the updates that keep the peak rate before the cosine.
        warmup_steps: Updates of the warm-up.
        weight_decay: On parameters of more than one dimension.
        checkpoint_steps: Updates between saved states.
    """

    steps: int
    batch_size: int
    learning_rate: float
    held_share: float = 0.0
    warmup_steps: int = 100
    weight_decay: float = 0.01
    checkpoint_steps: int = 200

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        warm = min(1.0, (step + 1) / self.warmup_steps)
        fall = max(0.0, step / self.steps - self.held_share) / (1 - self.held_share)
        return self.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * fall))


def fit(
    modules: nn.Module,
    parameters: Sequence[nn.Parameter],
    loss: Callable[[int, torch.Generator], Tensor],
    recipe: PartRecipe,
    *,
    path: Path,
    seed: int,
    after: Callable[[], None] | None = None,
) -> None:
    """Minimise a loss, going on from the state in `path` if a stopped run left one there.

    Args:
        modules: What the state file keeps the weights of.
        parameters: What is trained.
        loss: Of a step's number and a generator that depends on seed and number alone.
        recipe: How to train.
        path: State file; a log of the same stem lies beside it.
        seed: Seed of the steps.
        after: Called after every update.
    """
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98))
    first = 0
    if path.exists():
        saved = read_weight_file(path, remedy=RESTART)
        modules.load_state_dict(saved["model"])
        first = saved["step"]
        if first < recipe.steps:
            optimizer.load_state_dict(saved["optimizer"])
    began = time.monotonic()
    losses: list[float] = []
    for step in range(first, recipe.steps):
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate(step)
        value = loss(step, torch.Generator().manual_seed(seed * 1_000_003 + step))
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if after is not None:
            after()
        done = step + 1
        losses.append(value.item())
        if done % 50 == 0:
            mean = sum(losses) / len(losses)
            record = {"step": done, "loss": round(mean, 5), "seconds": round(time.monotonic() - began, 1)}
            append_jsonl(path.with_suffix(".jsonl"), record)
            logger.info("%s %s", path.stem, record)
            losses = []
        if done % recipe.checkpoint_steps == 0 or done == recipe.steps:
            state: dict[str, Any] = {"model": modules.state_dict(), "step": done}
            state["optimizer"] = optimizer.state_dict()
            replace_file(path, functools.partial(torch.save, state))


class Averaged(nn.Module):
    """Modules in training, and the running average of what is trained of them."""

    def __init__(self, parts: nn.Module, *, kept: float) -> None:
        """Start the average at the weights.

        Args:
            parts: What is trained.
            kept: Share of the average that an update keeps.
        """
        super().__init__()
        self.parts, self.kept = parts, kept
        self.averaged = copy.deepcopy(nn.ParameterList(self.trained())).requires_grad_(False)

    def trained(self) -> list[nn.Parameter]:
        """Return the parameters that are trained."""
        return [parameter for parameter in self.parts.parameters() if parameter.requires_grad]

    @torch.no_grad()
    def average(self) -> None:
        """Move the running average towards the weights."""
        torch._foreach_lerp_(list(self.averaged), list[Tensor](self.trained()), 1 - self.kept)

    @torch.no_grad()
    def adopt(self) -> None:
        """Take the running average as the weights."""
        for parameter, average in zip(self.trained(), self.averaged, strict=True):
            parameter.copy_(average)
