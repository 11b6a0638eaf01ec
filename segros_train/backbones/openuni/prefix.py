"""What the frozen language model makes of prompts: the keys and values that the learned queries read."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
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

    @classmethod
    def joined(cls, prompts: Sequence[Tensor]) -> Prefix:
        """Put prompts together, padded on the right.

        Args:
            prompts: B tensors as `apart` returns them, of any lengths.
        """
        dtype = reduce(torch.promote_types, (prompt.dtype for prompt in prompts))
        padded = pad_sequence([prompt.to(dtype) for prompt in prompts], batch_first=True)
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=padded.device)
        cache = DynamicCache()
        for number, (keys, values) in enumerate(padded.permute(2, 3, 0, 4, 1, 5)):
            cache.update(keys, values, number)
        return cls(cache, torch.arange(padded.shape[1], device=padded.device) < lengths.unsqueeze(1))

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Return a layer's keys and values with others behind them, as a cache does, but keep none of these."""
        before = self.cache.layers[layer]
        assert before.keys is not None and before.values is not None
        return torch.cat([before.keys, keys], dim=2), torch.cat([before.values, values], dim=2)

    def apart(self) -> list[Tensor]:
        """Return the keys and values of each prompt without padding, [tokens, layers, 2, key heads, head width]."""
        layers = torch.stack([torch.stack((keys, values)) for keys, values, *_ in self.cache])
        prompts = layers.permute(2, 4, 0, 1, 3, 5)
        return [prompt[valid] for prompt, valid in zip(prompts, self.valid, strict=True)]
