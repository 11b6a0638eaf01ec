"""What a micro-step minimises (Eq. 13), as a module, so that Accelerate can wrap it for many devices."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from segros_train.backbones.common.precision import autocast_dtype, mixed_precision
from segros_train.draws import keyed_seed
from segros_train.types import Embeddings, InstructionBatch

if TYPE_CHECKING:
    from segros_train.backbone import Backbone, Encoded
    from segros_train.method import Method
    from segros_train.types import GenerationBatch, Recipe

__all__ = ["Objective"]


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
            batch: Images with captions and their draws, or with dialogues; in a micro-step, the former come first.
            micro_step: Number of the micro-step in the run: with seed and rank, the key of dropout, which alone draws
                on the device.
        """
        dtype = autocast_dtype(self.recipe.precision, batch.images.device)
        with mixed_precision(batch.images.device, dtype):
            if isinstance(batch, InstructionBatch):
                return self.backbone.i2t_loss(batch).float()
            torch.manual_seed(keyed_seed(self._seed, "dropout", micro_step, self._rank))
            return self._t2i(batch)

    def _t2i(self, batch: GenerationBatch) -> Tensor:
        draws = batch.draws
        assert draws is not None
        encoded = self.backbone.encode(batch)
        seen = self._seen(encoded)
        supervision = self.method.supervise(seen, self.backbone.masking_ratio(draws), draws)
        if not self._checked:
            rows, columns = seen.latent_grid
            supervision.check(num_visual=seen.image.shape[1], num_cells=rows * columns)
            self._checked = True
        return self.backbone.t2i_loss(encoded, supervision, draws).float()

    def _seen(self, encoded: Encoded) -> Embeddings:
        """Embed a batch, or say no more than its grids where the method reads no more."""
        if self.method.needs_embeddings:
            return self.backbone.embed(encoded)
        image_grid, latent_grid = self.backbone.grids(encoded.batch)
        size, device = len(encoded.batch.captions), encoded.batch.images.device
        return Embeddings.of_no_width(size, image_grid=image_grid, latent_grid=latent_grid, device=device)
