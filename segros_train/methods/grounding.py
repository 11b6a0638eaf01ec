"""The visual grounding map, shared by the methods that select patches and by its picture.

`GroundingOptions` holds what the map depends on; methods that use one inherit its fields, so that an
ablation of the map is a `replace` of the method. `grounding` follows Eqs. (3) to (12) in order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from segros_train.draws import Draws
    from segros_train.types import Embeddings

__all__ = ["GroundingMap", "GroundingOptions", "check_share", "grounding"]


@dataclass(frozen=True, kw_only=True)
class GroundingOptions:
    """What the grounding map depends on; defaults as in the paper.

    Attributes:
        text_ratio: Share of the caption's tokens that is kept, Eq. (8).
        intra: Whether the attention between tokens counts for a token's importance.
        inter: Whether the attention from the image does; without either every token is kept.
        temperature: Of every softmax.
        noise_scale: Width of the uniform noise on the map, Eq. (12).
    """

    text_ratio: float = 0.4
    intra: bool = True
    inter: bool = True
    temperature: float = 0.07
    noise_scale: float = 0.5

    def __post_init__(self) -> None:
        check_share("text_ratio", self.text_ratio)
        if not self.temperature > 0:
            raise ValueError(f"temperature must be above 0, found {self.temperature}.")
        if not self.noise_scale >= 0:
            raise ValueError(f"noise_scale must be at least 0, found {self.noise_scale}.")


@dataclass(frozen=True)
class GroundingMap:
    """Every stage of the map of one batch.

    Attributes:
        intra: [B, L] affinity of Eq. (4).
        inter: [B, L] affinity of Eq. (6).
        importance: [B, L] of Eq. (7); 0 everywhere where no affinity is used.
        keep: [B, L] bool of Eq. (9).
        scores: [B, N] of Eq. (11).
        normalised: [B, N] scores scaled to [0, 1].
        perturbed: [B, N] of Eq. (12), over visual embeddings: hints are chosen from it.
        cells: [B, M] of Eq. (12), over latent cells: masked cells are chosen from it. The same tensor as
            `perturbed` where the two grids agree.
    """

    intra: Tensor
    inter: Tensor
    importance: Tensor
    keep: Tensor
    scores: Tensor
    normalised: Tensor
    perturbed: Tensor
    cells: Tensor


def grounding(seen: Embeddings, options: GroundingOptions, *, draws: Draws) -> GroundingMap:
    """Compute the grounding map of a batch.

    Args:
        seen: Embeddings of captions and images.
        options: What the map depends on; a method that inherits them will do.
        draws: Source of the noise: one draw per visual embedding and, where the grids differ, one per cell.
    """
    import torch

    from segros_train import equations, masking

    text, valid, image = seen.text, seen.text_valid, seen.image
    with torch.no_grad():
        attention = equations.intra_modal_attention(text, valid, options.temperature)
        intra = equations.intra_modal_affinity(attention, valid)
        inter = equations.inter_modal_affinity(equations.inter_modal_attention(image, text, valid, options.temperature))
        importance = equations.importance(intra * options.intra, inter * options.inter, valid)
        keep = valid
        if options.intra or options.inter:
            keep = equations.discriminative_tokens(importance, valid, options.text_ratio)
        scores = equations.grounding_scores(equations.grounding_attention(text, image, options.temperature), keep)
        noise = draws.uniform("grounding map", scores.shape[1])
        perturbed = cells = equations.perturbed_grounding_map(scores, options.noise_scale, noise)
        if seen.latent_grid != seen.image_grid:
            resampled = masking.resample_scores(scores, seen.image_grid, seen.latent_grid)
            noise = draws.uniform("grounding map over cells", resampled.shape[1])
            cells = equations.perturbed_grounding_map(resampled, options.noise_scale, noise)
        normalised = equations.min_max(scores)
    return GroundingMap(intra, inter, importance, keep, scores, normalised, perturbed, cells)


def check_share(name: str, value: float) -> None:
    """Raise ValueError unless `value` lies in [0, 1]."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must lie in [0, 1], found {value}.")
