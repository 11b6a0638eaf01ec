r"""The diffusion head: one latent cell as a denoising process, conditioned on a vector.

A clean cell :math:`x_0` is noised to :math:`x_t=\sqrt{\bar\alpha_t}x_0+\sqrt{1-\bar\alpha_t}\,\epsilon` over
1000 steps of the cosine schedule. The network reads :math:`x_t`, t and the condition and returns the noise and,
per channel, where the log-variance of the reverse step lies between the posterior's and :math:`\log\beta_t`.
The loss of a row is the squared error of the noise plus the variational bound, whose mean is held constant so
that it trains the variance alone. Draws walk a respaced subset of the steps. Every coefficient is computed in
double precision and used in single.

Source: wusize/Harmon src/models/mar/diffusion/gaussian_diffusion.py, respace.py and ../diffloss.py @ 4eb60876
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from functools import cache
from typing import Generic, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segros_train.backbones.common.recompute import residual_stream, sum_in_chunks
from segros_train.backbones.harmon.config import DiffusionConfig
from segros_train.equations import masked_noise_error

__all__ = [
    "NUM_TRAINING_STEPS",
    "DiffusionHead",
    "NoiseStep",
    "RowLosses",
    "draw_timesteps",
    "sampling_steps",
    "training_steps",
]

NUM_TRAINING_STEPS = 1000
MAX_BETA = 0.999
TIME_FREQUENCIES = 128
HALF_LEVEL = 1 / 255
OUTERMOST = 0.999
MIN_PROBABILITY = 1e-12
CHUNK_BYTES = 4 * 2**30
"""What the network keeps of one chunk of rows between its passes, where chunks are computed again."""
KEPT_BYTES = 26
"""What a block keeps of one channel of one row under bf16 autocast, as `ResBlock` reads: fp32 input and output of the
normalisation, 4 + 4; in bf16 its scale, 2, shift, scale and gate, 6, and the inputs of three products, of an activation
and of the gating, 2 each."""


Number = TypeVar("Number", float, Tensor)


@dataclass(frozen=True)
class NoiseStep(Generic[Number]):
    """The coefficients of one step of a noise schedule, or, as tensors, of many.

    Attributes:
        signal: Share of the clean cell in the noisy one.
        noise: Share of the noise in the noisy cell.
        inverse_signal: Factor of the noisy cell in the estimate of the clean one.
        inverse_noise: Factor of the noise that this estimate subtracts.
        mean_start: Factor of the clean cell in the mean of the step before.
        mean_state: Factor of the noisy cell in the mean of the step before.
        log_posterior: Log-variance of the posterior; the first step takes the second's, which is finite.
        log_beta: Log-variance of the forward step.
    """

    signal: Number
    noise: Number
    inverse_signal: Number
    inverse_noise: Number
    mean_start: Number
    mean_state: Number
    log_posterior: Number
    log_beta: Number


def _cosine_betas() -> list[float]:
    def signal(time: float) -> float:
        return math.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2

    steps = NUM_TRAINING_STEPS
    return [min(1 - signal((index + 1) / steps) / signal(index / steps), MAX_BETA) for index in range(steps)]


def _cumulative(betas: Sequence[float]) -> list[float]:
    product, products = 1.0, []
    for beta in betas:
        product *= 1 - beta
        products.append(product)
    return products


def _noise_steps(betas: Sequence[float]) -> tuple[NoiseStep[float], ...]:
    kept = _cumulative(betas)
    before = [1.0, *kept[:-1]]
    variances = [beta * (1 - a) / (1 - b) for beta, a, b in zip(betas, before, kept, strict=True)]
    variances[0] = variances[min(1, len(variances) - 1)] or betas[0]
    return tuple(
        NoiseStep(
            signal=math.sqrt(now),
            noise=math.sqrt(1 - now),
            inverse_signal=math.sqrt(1 / now),
            inverse_noise=math.sqrt(1 / now - 1),
            mean_start=beta * math.sqrt(last) / (1 - now),
            mean_state=(1 - last) * math.sqrt(1 - beta) / (1 - now),
            log_posterior=math.log(variance),
            log_beta=math.log(beta),
        )
        for beta, now, last, variance in zip(betas, kept, before, variances, strict=True)
    )


@cache
def training_steps() -> tuple[NoiseStep[float], ...]:
    """Return the 1000 steps of training."""
    return _noise_steps(_cosine_betas())


@cache
def _timestep_weights(most: float) -> Tensor:
    return torch.tensor([min(step.inverse_signal**2, most) for step in training_steps()])


def draw_timesteps(config: DiffusionConfig, num_rows: int, rng: torch.Generator) -> Tensor:
    """Draw `batch_mul` timesteps for each row, [batch_mul, R] long; see `DiffusionConfig.max_timestep_weight`."""
    shape = (config.batch_mul, num_rows)
    if config.max_timestep_weight == 1.0:
        return torch.randint(NUM_TRAINING_STEPS, shape, generator=rng, device=rng.device)
    weights = _timestep_weights(config.max_timestep_weight).to(rng.device)
    return torch.multinomial(weights, math.prod(shape), replacement=True, generator=rng).view(shape)


@cache
def sampling_steps(
    count: int, last: int = NUM_TRAINING_STEPS - 1
) -> tuple[tuple[int, ...], tuple[NoiseStep[float], ...]]:
    """Return the timesteps of a draw, ascending, and the coefficients of the schedule that visits only them.

    Args:
        count: Number of denoising steps in [1, last + 1].
        last: Timestep the draw starts from, in [0, 1000).

    Raises:
        ValueError: If `count` or `last` is out of range.
    """
    if not 1 <= count <= last + 1 <= NUM_TRAINING_STEPS:
        raise ValueError(
            f"A draw takes 1 to {NUM_TRAINING_STEPS} denoising steps, asked for {count} from timestep {last} on."
        )
    stride = last / (count - 1) if count > 1 else 1.0
    position, timesteps = 0.0, []
    for _ in range(count):
        timesteps.append(round(position))
        position += stride
    kept = _cumulative(_cosine_betas())
    visited = [kept[timestep] for timestep in timesteps]
    betas = [1 - now / last for now, last in zip(visited, [1.0, *visited[:-1]], strict=True)]
    return tuple(timesteps), _noise_steps(betas)


class TimeEmbedding(nn.Module):
    """Sinusoids of the timestep through an MLP."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(2 * TIME_FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, timesteps: Tensor) -> Tensor:
        indices = torch.arange(TIME_FREQUENCIES, dtype=torch.float32, device=timesteps.device)
        frequencies = torch.exp(-math.log(10_000) * indices / TIME_FREQUENCIES)
        angles = timesteps.float().unsqueeze(1) * frequencies
        return self.mlp(torch.cat([angles.cos(), angles.sin()], dim=1).to(next(self.mlp.parameters()).dtype))


class ResBlock(nn.Module):
    """A gated MLP whose normalisation follows the condition."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.in_ln = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 3 * width))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift, scale, gate = self.adaLN_modulation(condition).chunk(3, dim=-1)
        return x + gate * self.mlp(self.in_ln(x) * (1 + scale) + shift)


class FinalLayer(nn.Module):
    """The noise and variance of each channel."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.linear = nn.Linear(width, outputs)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(condition).chunk(2, dim=-1)
        return self.linear(self.norm_final(x) * (1 + scale) + shift)


class DenoisingNet(nn.Module):
    """Estimate noise and variance of noisy cells."""

    def __init__(self, config: DiffusionConfig, *, channels: int, condition_width: int) -> None:
        super().__init__()
        self.time_embed = TimeEmbedding(config.width)
        self.cond_embed = nn.Linear(condition_width, config.width)
        self.input_proj = nn.Linear(channels, config.width)
        self.res_blocks = nn.ModuleList(ResBlock(config.width) for _ in range(config.depth))
        self.final_layer = FinalLayer(config.width, 2 * channels)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Return [R, 2C], noise and variance, at least in float32.

        Args:
            x: [R, C] noisy cells.
            embedding: [R, width] sum of the embedded timestep and the embedded condition.
        """
        h, embedding = residual_stream(self.input_proj(x)), residual_stream(embedding)
        for block in self.res_blocks:
            h = block(h, embedding)
        output: Tensor = self.final_layer(h, embedding)
        return output.to(torch.promote_types(output.dtype, torch.float32))


@dataclass(frozen=True)
class RowLosses:
    """The terms of the loss, each [R]: squared error of the noise, variational bound in bits per channel."""

    noise: Tensor
    bound: Tensor

    @property
    def total(self) -> Tensor:
        """[R] loss of each row."""
        return self.noise + self.bound


class DiffusionHead(nn.Module):
    """Train and draw latent cells given their conditions.

    Attributes:
        recompute: Whether `loss` keeps nothing but its rows and computes them again, in chunks, for their gradient.
    """

    coefficients: Tensor

    def __init__(self, config: DiffusionConfig, *, channels: int, condition_width: int) -> None:
        super().__init__()
        self.recompute = False
        self.chunk = max(1, CHUNK_BYTES // (KEPT_BYTES * config.width * config.depth * config.batch_mul))
        self.sampling = (config.num_sampling_steps, config.last_sampling_timestep)
        self.net = DenoisingNet(config, channels=channels, condition_width=condition_width)
        table = torch.tensor([astuple(step) for step in training_steps()], dtype=torch.float32)
        self.register_buffer("coefficients", table, persistent=False)

    def row_losses(self, conditions: Tensor, cells: Tensor, *, timesteps: Tensor, noise: Tensor) -> RowLosses:
        """Return the loss terms of every row of every repetition, repetitions first.

        Args:
            conditions: [R, condition width] decoder outputs.
            cells: [R, C] clean cells.
            timesteps: [K, R] long in [0, 1000), for K repetitions of each row.
            noise: [K, R, C] standard normal.

        Returns:
            Terms of K x R rows.
        """
        return self._row_losses(conditions, cells, timesteps, noise, self._training_times())

    def _training_times(self) -> Tensor:
        """Return [1000, width], the embedded timesteps of training."""
        return self.net.time_embed(torch.arange(NUM_TRAINING_STEPS, device=self.coefficients.device))

    def _row_losses(
        self, conditions: Tensor, cells: Tensor, timesteps: Tensor, noise: Tensor, times: Tensor
    ) -> RowLosses:
        repeats = timesteps.shape[0]
        timesteps, noise = timesteps.flatten(), noise.flatten(0, 1)
        cells = cells.float().repeat(repeats, 1)
        step: NoiseStep[Tensor] = NoiseStep(*self.coefficients[timesteps].unsqueeze(-1).unbind(1))
        noisy = step.signal * cells + step.noise * noise
        embedding = F.embedding(timesteps, times) + self.net.cond_embed(conditions).repeat(repeats, 1)
        return loss_terms(self.net(noisy, embedding), cells, noisy=noisy, noise=noise, step=step, first=timesteps == 0)

    def loss(self, conditions: Tensor, cells: Tensor, *, timesteps: Tensor, noise: Tensor) -> Tensor:
        """Return the mean loss of the rows, a scalar; arguments as in `row_losses`."""
        times = self._training_times()

        def total(conditions: Tensor, cells: Tensor, timesteps: Tensor, noise: Tensor) -> Tensor:
            terms = self._row_losses(conditions, cells, timesteps.transpose(0, 1), noise.transpose(0, 1), times)
            return terms.total.sum()

        rows = (conditions, cells, timesteps.transpose(0, 1), noise.transpose(0, 1))
        chunk = self.chunk if self.recompute else len(cells)
        return sum_in_chunks(total, *rows, chunk=chunk, recompute=self.recompute) / timesteps.numel()

    def time_table(self) -> Tensor:
        """Return [S, width], the embedded timesteps of a draw, ascending."""
        timesteps, _ = sampling_steps(*self.sampling)
        return self.net.time_embed(torch.tensor(timesteps, device=self.coefficients.device))

    def sample(
        self, conditions: Tensor, noise: Tensor, *, times: Tensor, guidance: float = 1.0, temperature: float = 1.0
    ) -> Tensor:
        """Draw cells by ancestral sampling.

        Args:
            conditions: [R, condition width], or [2R, condition width] with the unconditional half last when
                `guidance` is not 1.
            noise: [R, 1 + S, C] standard normal: where the draw starts, then one per denoising step.
            times: [S, width] from `time_table`.
            guidance: Scale of classifier-free guidance; 1 switches it off.
            temperature: Factor of the noise of the steps, not of the start.

        Returns:
            [R, C] cells.
        """
        _, steps = sampling_steps(*self.sampling)
        conditions = self.net.cond_embed(conditions)
        guided = guidance != 1.0
        start, *draws = noise.unbind(1)
        x = start
        for index in reversed(range(len(steps))):
            step = steps[index]
            output = self.net(x.repeat(2, 1) if guided else x, conditions + times[index])
            epsilon, fraction = output.chunk(2, dim=-1)
            if guided:
                conditional, unconditional = epsilon.chunk(2)
                epsilon = unconditional + guidance * (conditional - unconditional)
                fraction = fraction.chunk(2)[0]
            x = step.mean_start * (step.inverse_signal * x - step.inverse_noise * epsilon) + step.mean_state * x
            if index > 0:
                deviation = torch.exp(0.5 * log_variance(fraction, step))
                x = x + deviation * draws[len(steps) - 1 - index] * temperature
        return x


def log_variance(fraction: Tensor, step: NoiseStep[float] | NoiseStep[Tensor]) -> Tensor:
    """Return the log-variance that lies at `fraction`, from -1 to 1, between the posterior's and the forward step's."""
    share = (fraction + 1) / 2
    return share * step.log_beta + (1 - share) * step.log_posterior


def loss_terms(
    output: Tensor, cells: Tensor, *, noisy: Tensor, noise: Tensor, step: NoiseStep[Tensor], first: Tensor
) -> RowLosses:
    """Return the terms of the loss for the network's outputs.

    Args:
        output: [R, 2C] noise and variance.
        cells: [R, C] clean cells.
        noisy: [R, C] what the network read.
        noise: [R, C] what was added.
        step: Coefficients, each a tensor [R, 1].
        first: [R] bool, True where the timestep is 0.
    """
    epsilon, fraction = output.chunk(2, dim=-1)
    error = masked_noise_error(noise, epsilon)
    log_var = log_variance(fraction, step)
    estimate = step.inverse_signal * noisy - step.inverse_noise * epsilon.detach()
    mean = step.mean_start * estimate + step.mean_state * noisy
    true_mean = step.mean_start * cells + step.mean_state * noisy
    divergence = 0.5 * (
        -1
        + log_var
        - step.log_posterior
        + torch.exp(step.log_posterior - log_var)
        + (true_mean - mean).square() * torch.exp(-log_var)
    )
    likelihood = _discretised_nll(cells, mean, log_var, first)
    bound = torch.where(first, likelihood.mean(dim=-1), divergence.mean(dim=-1)) / math.log(2)
    # Harmon's own loss adds the bound, which trains the variance alone, to Eq. (17).
    return RowLosses(noise=error, bound=bound)


def _normal_cdf(x: Tensor) -> Tensor:
    """Return the tanh approximation of the normal distribution function, as the reference does."""
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _discretised_nll(cells: Tensor, mean: Tensor, log_var: Tensor, first: Tensor) -> Tensor:
    """Return the negative log-likelihood [R, C] of a normal cut into levels of 1/255; meaningful where `first`."""
    # Other rows may overflow here and would turn the gradient of `where` into NaN.
    centred = torch.where(first.unsqueeze(1), cells - mean, 0.0)
    precision = torch.exp(-0.5 * log_var)
    upper = _normal_cdf(precision * (centred + HALF_LEVEL))
    lower = _normal_cdf(precision * (centred - HALF_LEVEL))
    probability = torch.where(cells > OUTERMOST, 1 - lower, upper - lower)
    probability = torch.where(cells < -OUTERMOST, upper, probability)
    return -torch.log(probability.clamp(min=MIN_PROBABILITY))
