"""The one loop of all pretraining: AdamW, a warm-up, a falling rate, a state file to go on from."""

from __future__ import annotations

import argparse
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from segros_train.files import append_jsonl, atomic_write
from segros_train.weight_files import RESTART, read_weight_file

__all__ = ["PartRecipe", "Run", "fit", "run_of"]

logger = logging.getLogger(__name__)

LOGGED_EVERY, SAVED_EVERY = 50, 200
TRIED_UPDATES, TRIED_SCENES = 2, 4


@dataclass(frozen=True)
class PartRecipe:
    """How one part is trained.

    Attributes:
        steps: Updates.
        batch_size: Scenes per update.
        learning_rate: Peak rate, with a linear warm-up and a cosine to zero.
        held_share: Share of the updates that keep the peak rate before the cosine; 1 for no cosine.
        warmup_steps: Updates of the warm-up.
        weight_decay: On parameters of more than one dimension.
    """

    steps: int
    batch_size: int
    learning_rate: float
    held_share: float = 0.0
    warmup_steps: int = 100
    weight_decay: float = 0.01

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        warm = min(1.0, (step + 1) / self.warmup_steps)
        past = max(0.0, step / self.steps - self.held_share)
        fall = past / (1 - self.held_share) if past else 0.0
        return self.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * fall))

    def at(self, points: Sequence[tuple[float, float]], step: int) -> float:
        """Return the value of a step, on straight lines between (share of the updates, value)."""
        shares, values = zip(*points, strict=True)
        return float(np.interp(step / self.steps, shares, values))


Recipe = TypeVar("Recipe", bound=PartRecipe)


@dataclass(frozen=True)
class Run:
    """One run of a command.

    Attributes:
        folder: Where states, logs and the finished weights go.
        seed: Seed of every weight and draw.
        tried: Whether the command is only tried: two updates of four scenes in every part.
        device: Where to train.
    """

    folder: Path
    seed: int = 0
    tried: bool = False
    device: torch.device = torch.device("cpu")

    def of(self, recipe: Recipe) -> Recipe:
        """Return a recipe as this run follows it."""
        return replace(recipe, steps=TRIED_UPDATES, batch_size=TRIED_SCENES) if self.tried else recipe

    def count(self, number: int) -> int:
        """Return how many scenes or texts this run takes where a whole one takes `number`."""
        return min(number, 10 * TRIED_SCENES) if self.tried else number


def run_of(arguments: Sequence[str] | None, description: str) -> Run:
    """Read the command line that all commands share; None takes the process's own."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="a stopped run goes on from here")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--try", action="store_true", dest="tried", help="two updates of four scenes in every part")
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    given.out.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return Run(given.out, given.seed, given.tried, device)


def fit(
    name: str,
    modules: nn.Module,
    loss: Callable[[int, torch.Generator], Tensor],
    recipe: PartRecipe,
    run: Run,
    *,
    after: Callable[[], None] | None = None,
) -> None:
    """Train what requires a gradient of modules, going on from the state that a stopped run left.

    Args:
        name: Of the part: `<name>.pt` keeps its state, `<name>.jsonl` its losses.
        modules: What is trained, in place, and saved.
        loss: Of a step's number and a generator that depends on seed and number alone.
        recipe: How to train, as the run follows it.
        run: Where to, and from which seed.
        after: Called after every update.
    """
    path = run.folder / f"{name}.pt"
    parameters = [parameter for parameter in modules.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.dim() > 1], "weight_decay": recipe.weight_decay},
            {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
        ],
        betas=(0.9, 0.98),
    )
    first = 0
    if path.exists():
        saved = read_weight_file(path, remedy=RESTART)
        modules.load_state_dict(saved["model"])
        first = saved["step"]
        if first < recipe.steps:
            optimizer.load_state_dict(saved["optimizer"])
    began, losses = time.monotonic(), list[float]()
    for step in range(first, recipe.steps):
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate(step)
        value = loss(step, torch.Generator().manual_seed(run.seed * 1_000_003 + step))
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if after is not None:
            after()
        done = step + 1
        losses.append(value.item())
        if done % LOGGED_EVERY == 0 or done == recipe.steps:
            mean, seconds = sum(losses) / len(losses), time.monotonic() - began
            record = {"step": done, "loss": round(mean, 5), "seconds": round(seconds, 1)}
            append_jsonl(path.with_suffix(".jsonl"), record)
            logger.info("%s %s", name, record)
            losses = []
        if done % SAVED_EVERY == 0 or done == recipe.steps:
            state = {"model": modules.state_dict(), "step": done}
            if done < recipe.steps:
                state["optimizer"] = optimizer.state_dict()
            with atomic_write(path) as draft:
                torch.save(state, draft)
