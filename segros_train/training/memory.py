"""Peak device memory of what the code computes, counted without a device.

The real code runs on fake tensors, which have a shape and no values, while every storage that an operator makes is
counted until it is freed. What stands for a GPU here: attention keeps what CUDA's fused kernels keep (queries, keys,
values, output and one number a row), autocast computes norms and sums in float32, dropout keeps a bool mask, and a
convolution over several cells reads and writes copies with channels last, as cuDNN's kernels for tensor cores do.
Integers, masks and small tensors are real, so that indices and counts can be read; where one would follow from fake
values, an order is drawn by chance and anything else is zero.
"""

from __future__ import annotations

import copy
import math
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

__all__ = ["Count", "OverLimitError", "counting", "fake_twin"]

aten = torch.ops.aten

REAL_ELEMENTS = 1 << 20
"""Factories of at most so many elements make real tensors."""
FACTORIES = frozenset(("empty", "zeros", "ones", "full", "rand", "randn"))
FLOAT32_UNDER_AUTOCAST = frozenset(
    "exp log log2 log1p reciprocal rsqrt pow __pow__ __rpow__ softplus layer_norm group_norm norm linalg_vector_norm "
    "cosine_similarity nll_loss kl_div l1_loss smooth_l1_loss mse_loss cross_entropy logsumexp cdist prod softmax "
    "log_softmax cumprod cumsum sum binary_cross_entropy_with_logits __rsub__norm".split()
)
"""Names of what CUDA's autocast computes in float32; a CPU's list is shorter."""


class _CudaLike(TorchFunctionMode):
    """Take CUDA's way where a CPU's has another memory."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if name == "scaled_dot_product_attention":
            return _attend(*args, **kwargs)
        if name in ("dropout", "dropout_") and isinstance(args[0], Tensor):
            return _dropout(*args, **kwargs)
        if name in FLOAT32_UNDER_AUTOCAST and torch.is_autocast_enabled("cpu"):
            args, kwargs = tree_map_only(Tensor, _widened, (args, kwargs))
        return func(*args, **kwargs)


def _widened(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    if torch.is_autocast_enabled("cpu"):
        low = torch.get_autocast_dtype("cpu")
        query, key, value = query.to(low), key.to(low), value.to(low)
    if attn_mask is None and query.dtype != torch.float32:
        return aten._scaled_dot_product_flash_attention(query, key, value, dropout_p, is_causal, scale=scale)[0]
    if key.shape[1] != query.shape[1]:
        key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
    if attn_mask is not None:
        # The kernel reads an additive mask whose rows begin at multiples of 8 elements.
        shape = (*attn_mask.shape[:-1], 8 * math.ceil(attn_mask.shape[-1] / 8))
        attn_mask = query.new_empty(shape)[..., : attn_mask.shape[-1]]
        attn_mask = attn_mask.expand(*query.shape[:-1], key.shape[-2])
    return aten._scaled_dot_product_efficient_attention(
        query, key, value, attn_mask, torch.is_grad_enabled(), dropout_p, is_causal, scale=scale
    )[0]


def _dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    return torch.native_dropout(x, p, True)[0] if training and p > 0 else x


class OverLimitError(Exception):
    """Say that more stands than was allowed; nothing further is counted."""


class Count(TorchDispatchMode):
    """Run operators on fake tensors and count the storages that stand.

    Attributes:
        limit: Bytes above which counting ends with an `OverLimitError`.
        live: Bytes that stand now.
        peak: Most bytes that stood at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.live = self.peak = 0
        self.limit = math.inf
        self._seen: dict[int, weakref.ref[Any]] = {}

    def keep(self, tensor: Tensor) -> None:
        """Count a tensor's storage from now until it is freed."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._seen:
            return
        size = storage.nbytes()

        def freed(_: Any) -> None:
            del self._seen[key]
            self.live -= size

        self._seen[key] = weakref.ref(storage, freed)
        self.live += size
        self.reach(self.live)

    def reach(self, size: int) -> None:
        """Note that so many bytes stand.

        Raises:
            OverLimitError: If they are more than the limit.
        """
        self.peak = max(self.peak, size)
        if size > self.limit:
            raise OverLimitError(f"{size} bytes stand, {self.limit} were allowed.")

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Make a fake tensor, counted."""
        with self.fake:
            made = torch.empty(tuple(shape), dtype=dtype)
        self.keep(made)
        return made

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        name = func.overloadpacket.__name__
        if any(isinstance(x, FakeTensor) for x in tensors):
            out = self._on_fakes(func, name, tensors, args, kwargs)
        elif name in FACTORIES and math.prod(args[0]) > REAL_ELEMENTS and _is_floating(kwargs.get("dtype")):
            with self.fake:
                out = torch.empty(tuple(args[0]), dtype=kwargs.get("dtype"))
        else:
            out = func(*args, **kwargs)
        for x in tree_leaves(out):
            if isinstance(x, Tensor):
                self.keep(x)
        return out

    def _on_fakes(self, func: Any, name: str, tensors: list[Tensor], args: Any, kwargs: dict[str, Any]) -> Any:
        if name == "_local_scalar_dense":
            return {torch.bool: False}.get(tensors[0].dtype, 1)
        if name == "exponential_":  # On fakes it takes no generator.
            return args[0]
        if name in ("index", "index_put", "index_put_", "_unsafe_index", "_index_put_impl_"):
            args = (args[0], _as_places(args[1]), *args[2:])
        with self.fake:
            out = func(*args, **kwargs)
        if name == "convolution" and args[8] == 1 and math.prod(args[1].shape[2:]) > 1:
            self.reach(self.live + out.nbytes + args[0].nbytes)
        if name in ("sort", "topk", "argsort"):
            values, indices = out
            order = torch.rand(tensors[0].shape).argsort(dim=-1)[..., : indices.shape[-1]]
            return values, order
        if name == "native_dropout" or name.endswith("_"):
            return out
        return tree_map_only(FakeTensor, _materialised, out)


def _materialised(x: Tensor) -> Tensor:
    """Return zeros for integers and masks that are not large."""
    if x.dtype.is_floating_point or x.numel() > 4 * REAL_ELEMENTS or x.dtype.is_complex:
        return x
    return torch.zeros(x.shape, dtype=x.dtype)


def _as_places(indices: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Replace masks by the places that they mark."""
    places: list[Tensor | None] = []
    for index in indices:
        if index is not None and index.dtype in (torch.bool, torch.uint8):
            places += list(index.nonzero(as_tuple=True))
        else:
            places.append(index)
    return places


def _is_floating(dtype: torch.dtype | None) -> bool:
    return dtype is None or dtype.is_floating_point


@contextmanager
def counting() -> Iterator[Count]:
    """Count what is made in a context, with CUDA's memory for what a CPU does otherwise."""
    count = Count()
    with count, _CudaLike():
        yield count


def fake_twin(module: nn.Module, count: Count) -> nn.Module:
    """Copy a module with fake parameters of the same shapes and types; large buffers are fake too."""
    memo: dict[int, Any] = {}
    for parameter in module.parameters():
        made = nn.Parameter(count.empty(parameter.shape, parameter.dtype), requires_grad=parameter.requires_grad)
        memo[id(parameter)] = made
    for buffer in module.buffers():
        if buffer.numel() > REAL_ELEMENTS or buffer.device.type != "cpu":
            memo[id(buffer)] = count.empty(buffer.shape, buffer.dtype)
    return copy.deepcopy(module, memo)
