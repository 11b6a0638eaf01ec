"""Peak device memory of a training step and of a draw, counted without a device.

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
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from segros_train.draws import Draws
from segros_train.errors import PrerequisiteError
from segros_train.training.objective import Objective
from segros_train.types import GenerationBatch, InstructionBatch, Turn

if TYPE_CHECKING:
    from segros_train.backbone import Backbone
    from segros_train.method import Method
    from segros_train.types import Checkpointing, GenerationSettings, Recipe

__all__ = [
    "Batch",
    "Choice",
    "Count",
    "OverLimitError",
    "choose_batch",
    "choose_checkpointing",
    "counting",
    "drawing_peak",
    "fake_twin",
    "fitting",
    "fitting_batch",
    "training_peak",
]

CHECKPOINTING: tuple[Checkpointing, ...] = ("none", "blocks", "all")
"""From the fastest to the one that takes least memory."""
CONTEXT_BYTES = 2**30
"""CUDA's context and the libraries' workspaces, which no tensor shows: an estimate, not measured here."""
BATCH_SIZES = (96, 64, 48, 32, 24, 16, 12, 8, 6, 4, 3, 2, 1)
"""Tried for drawing: at 96 Harmon-1.5B drew fastest of what was measured, and a card's rate does not grow for ever."""
CAPTION = " ".join(["a red circle and a blue square ,"] * 9)
LAST_STEPS = 2
"""Iterations of a draw that are counted: the last take the most, and the second finds what the first left behind."""
SHARE = 0.93
"""Share of a device that may be planned with; the rest is for blocks that the allocator cannot use whole."""

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


def training_peak(backbone: Backbone, method: Method, recipe: Recipe, *, limit: float = math.inf) -> int:
    """Return the most bytes that stand during one micro-step, losses taken back one after the other.

    Args:
        backbone: Any built backbone, on any device or none; it is left as it is.
        method: What decides the supervision.
        recipe: Its micro-batch and `checkpointing` count, None as `"none"`; its precision is taken to be bf16.
        limit: Bytes that are too many, so that counting need not go on.

    Raises:
        OverLimitError: If more than `limit` stand.
    """
    with counting() as count:
        count.limit = limit - CONTEXT_BYTES
        twin: Any = fake_twin(backbone, count).train()
        twin.set_checkpointing(recipe.checkpointing or "none")
        trained = [p for p in twin.parameters() if p.requires_grad]
        moments = [count.empty(p.shape, p.dtype) for p in trained for _ in range(2)]
        recipe = replace(recipe, precision="bf16")
        if recipe.accumulation > 1:
            for p in trained:
                p.grad = count.empty(p.shape, p.dtype)
        batches = [batch for batch in _batches(twin, recipe, count) if batch is not None]
        count.peak = count.live
        objective = Objective(twin, method, recipe, seed=0)
        for batch in batches:
            loss = objective(batch, 0) / recipe.accumulation
            # The plain call of the engine: `backward` would leave the modes off while blocks are computed again.
            torch.autograd.Variable._execution_engine.run_backward(
                (loss,), (torch.ones_like(loss),), False, False, (), allow_unreachable=True, accumulate_grad=True
            )
        del moments
    return count.peak + CONTEXT_BYTES


@dataclass(frozen=True)
class Choice:
    """What is recomputed in training, and the most bytes that then stand on the device."""

    checkpointing: Checkpointing
    peak: int


def choose_checkpointing(backbone: Backbone, method: Method, recipe: Recipe, *, capacity: int) -> Choice:
    """Return the fastest way to train within a device's memory: what recomputes least.

    Args:
        backbone: As for `training_peak`.
        method: What decides the supervision.
        recipe: Its `checkpointing` is not read.
        capacity: Bytes of the device.

    Raises:
        PrerequisiteError: If even recomputing all that can be takes more.
    """
    for checkpointing in CHECKPOINTING:
        with suppress(OverLimitError):
            peak = training_peak(backbone, method, replace(recipe, checkpointing=checkpointing), limit=SHARE * capacity)
            return Choice(checkpointing, peak)
    ways = (
        f"--set recipe.batch_size={max(1, recipe.batch_size // 2)} --set recipe.accumulation={2 * recipe.accumulation}"
    )
    raise PrerequisiteError(
        f"Training {backbone.card.title} at a micro-batch of {recipe.batch_size} takes more than "
        f"{SHARE * capacity / 2**30:.1f} GiB with everything recomputed, and the device has {capacity / 2**30:.1f}: "
        f"take {ways}."
    )


def fitting(backbone: Backbone, method: Method, recipe: Recipe) -> tuple[Recipe, Choice | None]:
    """Return a recipe that says what to recompute, and how that was chosen; a CPU, and a recipe that says, as it is.

    Raises:
        PrerequisiteError: If nothing fits the GPU that holds the backbone.
    """
    device = next(backbone.parameters()).device
    if recipe.checkpointing is not None or device.type != "cuda":
        return recipe, None
    choice = choose_checkpointing(backbone, method, recipe, capacity=_capacity(device))
    return replace(recipe, checkpointing=choice.checkpointing), choice


def _capacity(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).total_memory


def drawing_peak(backbone: Backbone, settings: GenerationSettings, batch_size: int, *, limit: float = math.inf) -> int:
    """Return the most bytes that stand while a batch is drawn.

    Args:
        backbone: Any built backbone, on any device or none, its weights in the types that they are drawn with.
        settings: Sampling settings.
        batch_size: Images drawn at once, each from a caption of about 60 words.
        limit: As for `training_peak`.

    Raises:
        OverLimitError: If more than `limit` stand.
    """
    with counting() as count:
        count.limit = limit - CONTEXT_BYTES
        twin: Any = fake_twin(backbone, count).eval()
        twin.last_steps = LAST_STEPS
        prompts = [f"{CAPTION} {number}" for number in range(batch_size)]
        for _ in twin.generate(prompts, seeds=range(batch_size), settings=replace(settings, batch_size=None)):
            pass
    return count.peak + CONTEXT_BYTES


@dataclass(frozen=True)
class Batch:
    """How many images are drawn at once, and the most bytes that then stand on the device."""

    batch_size: int
    peak: int


def choose_batch(backbone: Backbone, settings: GenerationSettings, *, capacity: int) -> Batch | None:
    """Return the first of `BATCH_SIZES` that a device holds; None if it holds none by the count.

    Args:
        backbone: As for `drawing_peak`.
        settings: Sampling settings.
        capacity: Bytes of the device.
    """
    for size in BATCH_SIZES:
        with suppress(OverLimitError):
            return Batch(size, drawing_peak(backbone, settings, size, limit=SHARE * capacity))
    return None


def fitting_batch(backbone: Backbone, settings: GenerationSettings) -> Batch | None:
    """Return what a GPU holds of a draw; None on a CPU, and where the settings say how many."""
    device = next(backbone.parameters()).device
    if settings.batch_size is not None or device.type != "cuda":
        return None
    return choose_batch(backbone, settings, capacity=_capacity(device))


def _batches(backbone: Any, recipe: Recipe, count: Count) -> tuple[GenerationBatch, InstructionBatch | None]:
    """Make a micro-batch of each task: captions of about 60 words, dialogues of 15 and 60."""
    side = backbone.card.image_size_px
    question = " ".join(["what is the red circle"] * 3)
    size = recipe.batch_size
    images = count.empty((size, 3, side, side), torch.float32)
    ids, draws = tuple(map(str, range(size))), Draws(0, 0, tuple(range(size)))
    generation = GenerationBatch(images, (CAPTION,) * size, ids, draws)
    if recipe.i2t_weight <= 0:
        return generation, None
    size = recipe.i2t_batch_size or size
    prepare = backbone.image_transform("understanding")
    side = prepare.size_px
    images = count.empty((size, 3, side, side), torch.float32)
    turns = ((Turn(question, CAPTION),),) * size
    return generation, InstructionBatch(images, turns, tuple(map(str, range(size))))
