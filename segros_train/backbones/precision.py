"""In what type weights are held that nothing trains: matrices in bf16, whatever needs more in float32.

Layer norms, learned tokens and tables stay in float32: they are few, autocast computes with them in float32, and a
bf16 layer norm takes no float32 input on a CPU. So do autoencoders, which draw outside of autocast. Norms of language
models of the Qwen family compute in float32 inside and pass their weight's type on.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

__all__ = ["Precision", "WeightTypes"]

Precision = Literal["auto", "fp32", "bf16"]
MATRICES = (nn.Linear, nn.Embedding, nn.Conv2d)
PASSING_NORMS = ("Qwen2RMSNorm",)


class WeightTypes:
    """The type in which each weight of a model is read."""

    def __init__(self, model: nn.Module, precision: Precision, *, device: str, autoencoder: str) -> None:
        """Sort the weights.

        Args:
            model: The model, its weights anywhere.
            precision: Of the matrices; `"auto"` is bf16 on a CUDA device and float32 elsewhere.
            device: Where the weights go.
            autoencoder: Name of the part that stays in float32.
        """
        low = precision == "bf16" or (precision == "auto" and torch.device(device).type == "cuda")
        self.matrices = torch.bfloat16 if low else torch.float32
        self._names = {
            f"{name}.{weight}"
            for name, module in model.named_modules()
            if isinstance(module, MATRICES) or type(module).__name__ in PASSING_NORMS
            for weight, _ in module.named_parameters(recurse=False)
            if not name.startswith(f"{autoencoder}.")
        }

    def __getitem__(self, name: str) -> torch.dtype:
        """Return the type of a weight."""
        return self.matrices if name in self._names else torch.float32
