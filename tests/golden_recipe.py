"""Weights of committed golden sets that are drawn anew, because random numbers need not be stored.

`weights.json` has the seed of the generator and, in order, what was drawn: `normal` entries `[name, shape, mean,
scale]`, `uniform` entries `[name, shape, bound]`. `weights_rest.safetensors` has every other tensor, and those that
were changed after they were drawn; of an embedding it may have rows alone, `NAME.rows` saying which of `NAME.count`.
The uniform numbers behind a draw are the same on every processor; a normal one may differ in its last bits.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

__all__ = ["with_weights"]


def with_weights(folder: Path, made: Path) -> Path:
    """Return the folder, or a copy of it in `made` with its weights drawn where it holds their recipe alone."""
    if not (folder / "weights.json").is_file() or (folder / "weights.safetensors").exists():
        return folder
    shutil.copytree(folder, made)
    recipe = json.loads((folder / "weights.json").read_text(encoding="utf-8"))
    rng = torch.Generator().manual_seed(recipe["seed"])
    weights = {}
    for name, shape, mean, scale in recipe.get("normal", ()):
        weights[name] = mean + torch.randn(shape, generator=rng) * scale
    for name, shape, bound in recipe.get("uniform", ()):
        weights[name] = (2 * torch.rand(shape, generator=rng) - 1) * bound
    rest = load_file(folder / "weights_rest.safetensors")
    for name in [name.removesuffix(".rows") for name in rest if name.endswith(".rows")]:
        chosen, count, rows = rest.pop(f"{name}.rows"), int(rest.pop(f"{name}.count")), rest[name]
        rest[name] = rows.new_zeros(count, rows.shape[1]).index_copy(0, chosen, rows)
    save_file({**weights, **rest}, made / "weights.safetensors")
    return made
