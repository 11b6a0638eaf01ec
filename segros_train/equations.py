r"""Eqs. (3) to (17) of SeGroS, in the order of the paper, as pure functions.

Everything happens on embeddings that have not entered the unified model yet: `text`, rows
$e^t_j$ of the embedding table for the L tokens of a caption, and `image`, the N visual
embeddings $e^v_i$. All are L2-normalised first, so that every product below is a cosine.

**Which words matter.** A caption token is discriminative if its neighbours attend to it and if
the image does:

$$ A^{tt} = \mathrm{softmax}_j(e^t_i \cdot e^t_j / \tau), \quad a^{intra}_j = \sum_{i \ne j} A^{tt}_{ij} \tag{3, 4} $$
$$ A^{vt} = \mathrm{softmax}_j(e^v_i \cdot e^t_j / \tau), \quad a^{inter}_j = \sum_i A^{vt}_{ij} \tag{5, 6} $$
$$ s_j = \hat a^{intra}_j + \hat a^{inter}_j, \qquad \hat x = \frac{x - \min x}{\max x - \min x} \tag{7} $$

and the $K = \max(1, \lfloor \rho_t L \rfloor)$ tokens of highest $s$ are kept: $m_j \in \{0, 1\}$ (8, 9).

**Where they stand.** The kept words look at the image; what they look at is grounded:

$$ A^{tv} = \mathrm{softmax}_i(e^t_j \cdot e^v_i / \tau), \quad g_i = \sum_j m_j A^{tv}_{ji} \tag{10, 11} $$
$$ \tilde g_i = \hat g_i + u_i, \qquad u_i \sim U(0, \text{noise\_scale}) \tag{12} $$

**What is learnt.** The native losses, on the cells that $\tilde g$ selects: (13) to (17).

Captions of a batch have unequal lengths: `valid` [B, L] is True on caption tokens and False on
special tokens, template and padding, which neither attend nor are attended to. Everything is
computed in float32 whatever the inputs or the autocast state, on the device of the inputs and
without waiting for it. Arguments stand in the order of the formulas.

Source: SeGroS, sections 3.2 to 3.4 and 11.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from segros_train.masking import descending_ranks, floor_counts

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "corrupted_latents",
    "discriminative_tokens",
    "grounding_attention",
    "grounding_scores",
    "importance",
    "inter_modal_affinity",
    "inter_modal_attention",
    "intra_modal_affinity",
    "intra_modal_attention",
    "joint_objective",
    "masked_noise_error",
    "masked_token_nll",
    "min_max",
    "perturbed_grounding_map",
]

EQUAL = 1e-5
"""Relative spread up to which scores are equal: a cosine rounds at 1e-7, and dividing it by a temperature
and taking its exponential magnifies that a hundredfold."""


def intra_modal_attention(text: Tensor, valid: Tensor, temperature: float) -> Tensor:
    """Compute how much each caption token attends to each other one, Eq. (3).

    Args:
        text: [B, L, D] caption embeddings, normalised here.
        valid: [B, L] bool, True on caption tokens.
        temperature: Softmax temperature, above 0.

    Returns:
        [B, L, L] float32: rows of caption tokens sum to 1 over caption tokens, all else is 0.
    """
    attention = _masked_softmax(_cosines(text, text) / temperature, valid.unsqueeze(1))
    return attention * valid.unsqueeze(2)


def intra_modal_affinity(attention: Tensor, valid: Tensor) -> Tensor:
    """Sum the attention each caption token receives from all other ones, Eq. (4).

    The diagonal is left out: a token's attention to itself says nothing about its neighbours.

    Args:
        attention: [B, L, L] of Eq. (3).
        valid: [B, L] bool, True on caption tokens.

    Returns:
        [B, L] float32, 0 off the caption.
    """
    others = ~torch.eye(attention.shape[-1], dtype=torch.bool, device=attention.device)
    return (attention.float() * (others & valid.unsqueeze(2) & valid.unsqueeze(1))).sum(dim=1)


def inter_modal_attention(image: Tensor, text: Tensor, valid: Tensor, temperature: float) -> Tensor:
    """Compute how much each visual embedding attends to each caption token, Eq. (5).

    Args:
        image: [B, N, D] visual embeddings, normalised here.
        text: [B, L, D] caption embeddings, normalised here.
        valid: [B, L] bool, True on caption tokens.
        temperature: Softmax temperature, above 0.

    Returns:
        [B, N, L] float32: rows sum to 1 over caption tokens, or are 0 where the caption is empty.
    """
    return _masked_softmax(_cosines(image, text) / temperature, valid.unsqueeze(1))


def inter_modal_affinity(attention: Tensor) -> Tensor:
    """Sum the attention each caption token receives from the whole image, Eq. (6).

    Args:
        attention: [B, N, L] of Eq. (5).

    Returns:
        [B, L] float32; a row sums to N, the mass of the image.
    """
    return attention.float().sum(dim=1)


def importance(intra: Tensor, inter: Tensor, valid: Tensor) -> Tensor:
    """Add the two affinities, each scaled to [0, 1] over the caption, Eq. (7).

    A constant affinity scales to 0, so a zero vector leaves its part out.

    Args:
        intra: [B, L] of Eq. (4).
        inter: [B, L] of Eq. (6).
        valid: [B, L] bool, True on caption tokens.

    Returns:
        [B, L] float32 in [0, 2], 0 off the caption.
    """
    return min_max(intra, valid) + min_max(inter, valid)


def discriminative_tokens(importance: Tensor, valid: Tensor, ratio: float) -> Tensor:
    """Keep the most important caption tokens, Eqs. (8) and (9).

    K = max(1, floor(ratio x caption length)) differs from row to row; equals go to the earlier token.

    Args:
        importance: [B, L] of Eq. (7).
        valid: [B, L] bool, True on caption tokens.
        ratio: Share of the caption to keep, in [0, 1].

    Returns:
        [B, L] bool, never True off the caption.
    """
    num_kept = floor_counts(ratio, valid.sum(dim=-1)).clamp(min=1)
    ranks = descending_ranks(importance.float().masked_fill(~valid, -torch.inf))
    return (ranks < num_kept.unsqueeze(-1)) & valid


def grounding_attention(text: Tensor, image: Tensor, temperature: float) -> Tensor:
    """Compute how much each caption token attends to each visual embedding, Eq. (10).

    Args:
        text: [B, L, D] caption embeddings, normalised here.
        image: [B, N, D] visual embeddings, normalised here.
        temperature: Softmax temperature, above 0.

    Returns:
        [B, L, N] float32, rows sum to 1.
    """
    return (_cosines(text, image) / temperature).softmax(dim=-1)


def grounding_scores(attention: Tensor, keep: Tensor) -> Tensor:
    """Sum the attention each visual embedding receives from the kept tokens, Eq. (11).

    Args:
        attention: [B, L, N] of Eq. (10).
        keep: [B, L] bool of Eq. (9).

    Returns:
        [B, N] float32; a row sums to the number of kept tokens.
    """
    return (attention.float() * keep.unsqueeze(-1)).sum(dim=1)


def perturbed_grounding_map(scores: Tensor, noise_scale: float, uniform: Tensor) -> Tensor:
    """Scale the grounding scores to [0, 1] and add uniform noise, Eq. (12).

    Args:
        scores: [B, N] of Eq. (11).
        noise_scale: Width of the noise.
        uniform: [B, N] draws, uniform in [0, 1).

    Returns:
        [B, N] float32 in [0, 1 + noise_scale].
    """
    return min_max(scores) + noise_scale * uniform.to(scores.device)


def joint_objective(t2i: Tensor, i2t: Tensor | None, weight: float) -> Tensor:
    """Add the text-to-image and the weighted image-to-text loss, Eq. (13).

    Args:
        t2i: Scalar native text-to-image loss.
        i2t: Scalar negative log-likelihood of the answers, Eq. (2); None where `weight` is 0.
        weight: Weight of `i2t`; 0 takes no part of it, not even its gradient graph.

    Raises:
        ValueError: If `i2t` is missing though it has a weight.
    """
    if weight == 0:
        return t2i
    if i2t is None:
        raise ValueError(f"The image-to-text loss has weight {weight} and was not given.")
    return t2i + weight * i2t


def masked_token_nll(logits: Tensor, codes: Tensor) -> Tensor:
    """Return the negative log-likelihood of the true code of each target cell, Eq. (15).

    The loss is the mean over all target cells of the batch, which a caller may take in chunks of rows.

    Args:
        logits: [R, V] scores over the V codes, rows of the target cells alone.
        codes: [R] long, their true codes.

    Returns:
        [R] float32.
    """
    return F.cross_entropy(logits.float(), codes, reduction="none")


def corrupted_latents(latents: Tensor, masked: Tensor, mask: Tensor | int) -> Tensor:
    """Put the mask in the place of the masked cells, Eq. (16).

    Args:
        latents: [B, M, D] cells as the backbone embeds them, or their codes [B, M], which it embeds afterwards.
        masked: [B, M] bool, True where a cell is hidden.
        mask: The learnable embedding, broadcastable to [B, M, D], or its code.

    Returns:
        [B, M, D] or [B, M] in the type of `latents`.
    """
    if isinstance(mask, int):
        return latents.masked_fill(masked, mask)
    return torch.where(masked.unsqueeze(-1), mask.to(latents.dtype), latents)


def masked_noise_error(noise: Tensor, predicted: Tensor) -> Tensor:
    """Return the squared error of the predicted noise of each target cell, Eq. (17).

    The loss is the mean over all target cells of the batch, which a caller may take in chunks of rows.

    Args:
        noise: [..., C] noise that was added, rows of target cells.
        predicted: [..., C] noise that the backbone predicts.

    Returns:
        [...] float32, the mean over channels.
    """
    return (noise.float() - predicted.float()).square().mean(dim=-1)


def min_max(scores: Tensor, valid: Tensor | None = None) -> Tensor:
    """Scale each row to [0, 1] by its own extremes.

    Args:
        scores: [B, N].
        valid: [B, N] bool, True where a score counts; None for everywhere.

    Returns:
        [B, N] float32, 0 where `valid` is False and in rows whose scores are all equal.
    """
    scores = scores.float()
    valid = torch.ones_like(scores, dtype=torch.bool) if valid is None else valid
    low = scores.masked_fill(~valid, torch.inf).amin(dim=-1, keepdim=True)
    high = scores.masked_fill(~valid, -torch.inf).amax(dim=-1, keepdim=True)
    # Equal scores come out of a softmax and a sum a little apart; stretched to [0, 1] that would look like a map.
    varies = valid & (high - low > EQUAL * torch.maximum(low.abs(), high.abs()))
    return torch.where(varies, (scores - low) / torch.where(varies, high - low, 1.0), 0.0)


def _cosines(rows: Tensor, columns: Tensor) -> Tensor:
    """Return the cosine of every row with every column, [B, R, C] float32."""
    # Autocast would take the product in bf16, whose three digits cannot rank a thousand patches.
    with torch.autocast(device_type=rows.device.type, enabled=False):
        normal_rows = F.normalize(rows.float(), dim=-1)
        return normal_rows @ F.normalize(columns.float(), dim=-1).transpose(1, 2)


def _masked_softmax(logits: Tensor, valid: Tensor) -> Tensor:
    """Return the softmax over the last axis where `valid`, 0 elsewhere and in rows without any."""
    lowest = torch.finfo(logits.dtype).min
    return logits.masked_fill(~valid, lowest).softmax(dim=-1) * valid
