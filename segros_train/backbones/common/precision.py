"""In what type weights are held that nothing trains: matrices in bf16, whatever needs more in float32.

Layer norms, learned tokens and tables stay in float32: they are few, autocast computes with them in float32, and a
bf16 layer norm takes no float32 input on a CPU. So do autoencoders, which draw outside of autocast. Norms of language
models of the Qwen family compute in float32 inside and pass their weight's type on.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

__all__ = ["Precision", "WeightTypes", "attention_kernel", "autocast_dtype", "mixed_precision"]

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


def autocast_dtype(precision: Literal["auto", "fp32", "bf16"], device: torch.device) -> torch.dtype | None:
    """Return the precision of matrix products, None for that of the weights.

    `"auto"` is bf16 on CUDA devices that have it and float32 elsewhere; `"bf16"` is taken at its word.
    """
    if precision == "auto":
        precision = "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
    return torch.bfloat16 if precision == "bf16" else None


@contextmanager
def mixed_precision(device: torch.device, dtype: torch.dtype | None) -> Iterator[None]:
    """Compute matrix products in `dtype`, None for the weights' own, as a context."""
    with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None), attention_kernel(device, dtype):
        yield


@contextmanager
def attention_kernel(device: torch.device, dtype: torch.dtype | None) -> Iterator[None]:
    """Choose how attention is computed, as a context; what is computed again in a backward pass needs it there too.

    In bf16 on a CPU that is by plain products: the fused kernel's backward takes five times as long.
    """
    if device.type != "cpu" or dtype != torch.bfloat16:
        yield
        return
    allowed = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(allowed)
