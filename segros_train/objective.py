"""What a micro-step minimises (Eq. 13), as a module, so that Accelerate can wrap it for many devices."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from segros_train.draws import keyed_generator, keyed_seed
from segros_train.types import Embeddings, InstructionBatch

if TYPE_CHECKING:
    from segros_train.backbone import Backbone
    from segros_train.methods import Method
    from segros_train.types import GenerationBatch, Recipe

__all__ = ["Objective", "autocast_dtype", "mixed_precision"]


def autocast_dtype(precision: Literal["auto", "fp32", "bf16"], device: torch.device) -> torch.dtype | None:
    """Return the precision of matrix products, None for that of the weights.

    `"auto"` is bf16 on CUDA devices that have it and float32 elsewhere; `"bf16"` is taken at its word.
    """
    if precision == "auto":
        precision = "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
    return torch.bfloat16 if precision == "bf16" else None


@contextmanager
def mixed_precision(device: torch.device, dtype: torch.dtype | None) -> Iterator[None]:
    """Compute matrix products in `dtype`, None for the weights' own, as a context.

    In bf16 on a CPU attention is computed by plain products: the fused kernel's backward takes five times as long.
    """
    with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
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


class Objective(nn.Module):
    """The two losses of one micro-step, one at a time, so that the graph of one is gone before the other's is built."""

    def __init__(self, backbone: Backbone, method: Method, recipe: Recipe, *, seed: int, rank: int = 0) -> None:
        super().__init__()
        self.backbone, self.method, self.recipe = backbone, method, recipe
        self._seed, self._rank = seed, rank
        self._checked = False

    def forward(self, batch: GenerationBatch | InstructionBatch, micro_step: int) -> Tensor:
        """Return the text-to-image or image-to-text loss of a micro-batch, unweighted, a float32 scalar.

        Args:
            batch: Images with captions, or with dialogues; in a micro-step, images with captions come first.
            micro_step: Number of the micro-step in the run: with the seed, the key of every draw.
        """
        dtype = autocast_dtype(self.recipe.precision, batch.images.device)
        with mixed_precision(batch.images.device, dtype):
            if isinstance(batch, InstructionBatch):
                return self.backbone.i2t_loss(batch).float()
            # Dropout draws from the global generators: seeded anew, it too depends on the micro-step alone.
            torch.manual_seed(keyed_seed(self._seed, "dropout", micro_step, self._rank))
            return self._t2i(batch, micro_step)

    def _t2i(self, batch: GenerationBatch, micro_step: int) -> Tensor:
        seen = _with_told(self._seen(batch), batch)
        ratio = self.backbone.masking_ratio(len(batch.captions), self._rng("masking ratio", micro_step, batch))
        supervision = self.method.supervise(seen, ratio, self._rng("supervision", micro_step, batch))
        if not self._checked:
            rows, columns = seen.latent_grid
            supervision.check(num_visual=seen.image.shape[1], num_cells=rows * columns)
            self._checked = True
        return self.backbone.t2i_loss(batch, supervision, self._rng("t2i loss", micro_step, batch)).float()

    def _seen(self, batch: GenerationBatch) -> Embeddings:
        """Embed a batch, or say no more than its grids where the method reads no more."""
        if self.method.needs_embeddings:
            return self.backbone.embed(batch)
        image_grid, latent_grid = self.backbone.grids(batch)
        return Embeddings.of_no_width(
            len(batch.captions), image_grid=image_grid, latent_grid=latent_grid, device=batch.images.device
        )

    def _rng(self, purpose: str, micro_step: int, batch: GenerationBatch) -> torch.Generator:
        return keyed_generator(self._seed, purpose, micro_step, self._rank, device=batch.images.device)


def _with_told(seen: Embeddings, batch: GenerationBatch) -> Embeddings:
    """Mark the cells that captions tell of, where the data set knows them."""
    if batch.told is None:
        return seen
    marks = torch.zeros(len(batch.told), seen.latent_grid[0] * seen.latent_grid[1], dtype=torch.bool)
    for row, cells in zip(marks, batch.told, strict=True):
        row[list(cells)] = True
    return replace(seen, told=marks.to(seen.image.device))
