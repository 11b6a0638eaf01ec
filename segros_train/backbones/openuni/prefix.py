"""What the frozen language model makes of prompts: the keys and values that the learned queries read."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

__all__ = ["Prefix"]


class Prefix:
    """The keys and values of B prompts in the frozen language model.

    Attributes:
        cache: Keys and values, padding included.
        valid: [B, S] bool, False on padding.
    """

    def __init__(self, cache: DynamicCache, valid: Tensor) -> None:
        self.cache = cache
        self.valid = valid

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Return a layer's keys and values with others behind them, as a cache does, but keep none of these."""
        before = self.cache.layers[layer]
        assert before.keys is not None and before.values is not None
        return torch.cat([before.keys, keys], dim=2), torch.cat([before.values, values], dim=2)
