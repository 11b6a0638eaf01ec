"""AdamW over a backbone's parameter groups, and the learning rate as a function of the update.

The rate is a pure function of (recipe, update), so that a restart has no scheduler to restore.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from segros_train.backbone import Backbone
    from segros_train.types import Recipe

__all__ = ["build_optimizer", "keep_master_weights", "learning_rate", "set_learning_rate"]


def learning_rate(recipe: Recipe, update: int) -> float:
    """Return the rate of one update: linear warm-up to the peak, then a cosine to zero.

    Args:
        recipe: `schedule_steps` None ends the cosine at `optimizer_steps`.
        update: Number of updates made before this one.
    """
    if update < recipe.warmup_steps:
        return recipe.learning_rate * (update + 1) / recipe.warmup_steps
    horizon = recipe.schedule_steps or recipe.optimizer_steps
    progress = (update - recipe.warmup_steps) / max(1, horizon - recipe.warmup_steps)
    return recipe.learning_rate * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group of `optimizer` the same rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def keep_master_weights(backbone: Backbone) -> None:
    """Hold every trainable parameter in at least float32, whatever precision it was loaded in.

    Must run before the optimizer is built. Frozen parameters keep their precision.
    """
    for parameter in backbone.parameters():
        if parameter.requires_grad and parameter.dtype.itemsize < torch.float32.itemsize:
            parameter.data = parameter.data.float()


def build_optimizer(backbone: Backbone, recipe: Recipe) -> torch.optim.AdamW:
    """Build AdamW with weight decay on the parameters that the backbone names as decayed.

    Raises:
        ValueError: If the groups of the backbone are not exactly its trainable parameters, each once.
    """
    groups = backbone.parameter_groups()
    grouped = [id(parameter) for parameter in (*groups.decayed, *groups.not_decayed)]
    names = {id(parameter): name for name, parameter in backbone.named_parameters() if parameter.requires_grad}
    if len(grouped) != len(set(grouped)) or set(grouped) != set(names):
        missing = sorted(name for identity, name in names.items() if identity not in grouped)
        raise ValueError(
            f"Parameter groups must hold each trainable parameter once: {len(grouped)} grouped, "
            f"{len(names)} trainable, missing {missing[:5]}."
        )
    fused = all(parameter.device.type in ("cpu", "cuda") for parameter in groups.decayed + groups.not_decayed)
    return torch.optim.AdamW(
        [
            {"params": list(groups.decayed), "weight_decay": recipe.weight_decay},
            {"params": list(groups.not_decayed), "weight_decay": 0.0},
        ],
        lr=recipe.learning_rate,
        betas=recipe.betas,
        fused=fused,
    )
