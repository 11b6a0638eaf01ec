r"""The flow between noise and latents: training noise, the masked loss, and the solver of sampling.

A latent $x_0$ and noise $\epsilon$ are mixed to $x_\sigma = (1 - \sigma) x_0 + \sigma \epsilon$, and the generator
estimates the velocity $v = \epsilon - x_0$. Training draws the timestep t uniformly from 1..1000 with
$\sigma = t / 1000$, without the shift that sampling has.

Sampling solves the flow backwards in n steps. With $b$ from `1 - linspace(1, 1/1000, n + 1)` and the shift $s$,
$\sigma = s b / (1 + (s - 1) b)$; with $\lambda(\sigma) = \ln((1 - \sigma) / \sigma)$, $h = \lambda_{i+1} - \lambda_i$,
$r = (\lambda_i - \lambda_{i-1}) / h$ and $k = (1 - \sigma_{i+1})(e^{-h} - 1)$:

$$ x \leftarrow \frac{\sigma_{i+1}}{\sigma_i} x - k\, x_0^{(i)} - \frac{k}{2 r} (x_0^{(i)} - x_0^{(i-1)}), \qquad
   x_0^{(i)} = x - \sigma_i v $$

The last term is left out in the first and the last step, and the last step gives $x_0$ itself. The noise levels are
those of diffusers' `DPMSolverMultistepScheduler`, to which a test holds the whole solver.

Source: wusize/OpenUni src/models/openuni/internvl3_sana_hf.py @ d1703fc; Lu et al., DPM-Solver++, 2M
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from diffusers import DPMSolverMultistepScheduler
from torch import Tensor

from segros_train.equations import masked_noise_error

__all__ = ["Schedule", "add_noise", "masked_velocity_error", "schedule", "solve", "timesteps_of"]

NUM_TRAINING_STEPS = 1000


def timesteps_of(uniform: Tensor) -> Tensor:
    """Return the timestep, 1 to 1000, of each uniform draw in [0, 1)."""
    return (NUM_TRAINING_STEPS - (uniform * NUM_TRAINING_STEPS).floor()).float()


def add_noise(latents: Tensor, noise: Tensor, sigmas: Tensor) -> Tensor:
    """Mix latents and noise.

    Args:
        latents: [B, C, h, w].
        noise: [B, C, h, w].
        sigmas: [B] or, by cell, [B, 1, h, w], in [0, 1].
    """
    sigmas = sigmas.view(-1, 1, 1, 1) if sigmas.dim() == 1 else sigmas
    return (1 - sigmas) * latents + sigmas * noise


def masked_velocity_error(velocity: Tensor, latents: Tensor, noise: Tensor, weights: Tensor | None = None) -> Tensor:
    """Average the squared error of the velocity over channels and weighted cells, then over the batch.

    Each sample counts alike, however many cells it takes the loss on.

    Args:
        velocity: [B, C, h, w], the estimate of `noise - latents`.
        latents: [B, C, h, w].
        noise: [B, C, h, w].
        weights: [B, M] bool or of at least 0, cells in raster order; None for every cell alike.

    Returns:
        Scalar float32; NaN where a sample has no cell of a weight.

    Source: SeGroS paper, Eqs. (14) and (17)
    """
    cells = (x.float().flatten(2).transpose(1, 2) for x in (noise.float() - latents.float(), velocity))
    errors = masked_noise_error(*cells)
    # OpenUni's own loss takes the velocity in place of the noise, and each sample's mean in place of the batch's.
    if weights is None:
        return errors.mean()
    weights = weights.to(errors)
    # Selected rather than multiplied by 0: an infinite error off the target must not become NaN.
    return (torch.where(weights > 0, errors * weights, 0.0).sum(dim=1) / weights.sum(dim=1)).mean()


@dataclass(frozen=True)
class Schedule:
    """The noise levels of a draw of n steps.

    Attributes:
        sigmas: n + 1 levels, falling, the last 0.
        timesteps: n timesteps that the generator is told.
    """

    sigmas: tuple[float, ...]
    timesteps: tuple[int, ...]


@cache
def schedule(num_steps: int, *, shift: float = 3.0) -> Schedule:
    """Return the noise levels of sampling.

    Raises:
        ValueError: If `num_steps` is below 1.
    """
    if num_steps < 1:
        raise ValueError(f"A draw takes at least one step, asked for {num_steps}.")
    levels = DPMSolverMultistepScheduler(
        num_train_timesteps=NUM_TRAINING_STEPS,
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        flow_shift=shift,
    )
    levels.set_timesteps(num_steps)
    return Schedule(tuple(levels.sigmas.tolist()), tuple(levels.timesteps.tolist()))


def _log_snr(sigma: float) -> float:
    return math.log((1 - sigma) / sigma)


def solve(
    noise: Tensor,
    levels: Schedule,
    velocity: Callable[[Tensor, int], Tensor],
    *,
    report: Callable[[Tensor], None] | None = None,
) -> Tensor:
    """Follow the flow from noise to latents.

    Args:
        noise: [B, C, h, w] float32.
        levels: Noise levels.
        velocity: Estimate of the velocity at a state and a timestep.
        report: Told of every state before its step.

    Returns:
        [B, C, h, w] latents.
    """
    sigmas, last = levels.sigmas, len(levels.timesteps) - 1
    state, before = noise, noise
    for step, timestep in enumerate(levels.timesteps):
        if report is not None:
            report(state)
        clean = state - sigmas[step] * velocity(state, timestep).float()
        if step == last:
            return clean
        rise = _log_snr(sigmas[step + 1]) - _log_snr(sigmas[step])
        factor = (1 - sigmas[step + 1]) * math.expm1(-rise)
        state = sigmas[step + 1] / sigmas[step] * state - factor * clean
        if step > 0:
            ratio = (_log_snr(sigmas[step]) - _log_snr(sigmas[step - 1])) / rise
            state = state - 0.5 * factor * (clean - before) / ratio
        before = clean
    raise AssertionError("a schedule has at least one step")
