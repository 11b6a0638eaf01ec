"""Drawing images: cells are revealed in a random order, a few more in each iteration.

Everything that does not depend on an image is computed once: the iterations are plain numbers, positions and
embedded timesteps are tables, the text and the empty condition are read once into a cache that every iteration
extends and crops. The loop never waits for the device.

Source: wusize/Harmon src/models/harmon.py (sample) @ 4eb60876
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from transformers import DynamicCache

from segros_train.backbones.common.images import decoded
from segros_train.backbones.common.modes import inference
from segros_train.backbones.common.texts import Prompts
from segros_train.backbones.harmon.mar import Positions, gather_rows
from segros_train.backbones.harmon.model import HarmonModel
from segros_train.backbones.harmon.prompts import NO_CAPTION
from segros_train.backbones.harmon.sequence import SequenceLayout, attention_mask

if TYPE_CHECKING:
    from PIL.Image import Image

    from segros_train.backbones.harmon.adapter import Harmon
    from segros_train.types import GenerationSettings

__all__ = ["Draws", "Iteration", "Sampler", "draw", "draws", "iterations"]

OPTIONS = ("precision",)


@dataclass(frozen=True)
class Iteration:
    """One iteration: `hidden` cells are hidden before it and `remaining` after it; guidance of its draws."""

    hidden: int
    remaining: int
    guidance: float


def iterations(
    num_cells: int, num_steps: int, *, cfg_scale: float = 1.0, cfg_schedule: Literal["constant", "linear"] = "constant"
) -> tuple[Iteration, ...]:
    """Plan the iterations of a draw; where there are more than cells, some reveal none.

    Args:
        num_cells: N.
        num_steps: Number of iterations, at least 1.
        cfg_scale: Guidance at full strength.
        cfg_schedule: `"linear"` lets the guidance grow with the share of revealed cells.

    Raises:
        ValueError: If `num_steps` is below 1.
    """
    if num_steps < 1:
        raise ValueError(f"A draw takes at least one iteration, asked for {num_steps}.")
    hidden, plan = num_cells, []
    for step in range(1, num_steps + 1):
        remaining = max(1, min(hidden - 1, math.floor(num_cells * math.cos(math.pi / 2 * step / num_steps))))
        strength = (num_cells - remaining) / num_cells if cfg_schedule == "linear" else 1.0
        guidance = 1 + (cfg_scale - 1) * strength
        left = 0 if step == num_steps else remaining
        plan.append(Iteration(hidden, left, guidance))
        hidden = left
    return tuple(plan)


@dataclass(frozen=True)
class Draws:
    """The random draws of B images, given by cell so that they do not depend on the number of iterations.

    Attributes:
        orders: [B, N] long; cells are revealed from the end.
        noise: [B, N, 1 + S, C], where a cell's diffusion starts, then one draw per denoising step.
    """

    orders: Tensor
    noise: Tensor

    def to(self, device: torch.device) -> Draws:
        """Return the draws on another device."""
        return Draws(self.orders.to(device), self.noise.to(device))


def draws(prompts: Sequence[str], seeds: Sequence[int], *, num_cells: int, num_steps: int, channels: int) -> Draws:
    """Draw what images need, each from a generator of its own, keyed by prompt and seed."""
    orders, noise = [], []
    for prompt, seed in zip(prompts, seeds, strict=True):
        digest = hashlib.sha256(f"{seed}\n{prompt}".encode()).digest()
        rng = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        orders.append(torch.randperm(num_cells, generator=rng))
        noise.append(torch.randn(num_cells, 1 + num_steps, channels, generator=rng))
    return Draws(torch.stack(orders), torch.stack(noise))


class Sampler:
    """Draw the cells of B images at one grid; rows are B conditional ones and, with guidance, B unconditional."""

    def __init__(
        self,
        model: HarmonModel,
        prompts: Prompts,
        rows: Sequence[int],
        *,
        grid: tuple[int, int],
        attention: Literal["paper", "native"] = "native",
    ) -> None:
        """Read the prompts.

        Args:
            model: The model, in eval mode; all calls happen without gradient.
            prompts: Different prompts, each read once.
            rows: Index of the prompt of each row.
            grid: Rows and columns of cells.
            attention: Mask of the language model.
        """
        self.model = model
        self.grid = grid
        self.attention = attention
        device = prompts.ids.device
        index = torch.tensor(rows, device=device)
        self.valid = prompts.valid[index]
        self.lengths = self.valid.sum(dim=1, keepdim=True)
        self.cache = DynamicCache(config=model.llm.config)
        model.llm.model(input_ids=prompts.ids, past_key_values=self.cache, use_cache=True)
        self.cache.batch_select_indices(index)
        self.positions: Positions = model.mar.positions(grid)
        self.times = model.mar.diffloss.time_table()

    def conditions(self, cells: Tensor, visible: Tensor) -> Tensor:
        """Return the condition of every cell of every row, [R, N, decoder width].

        Args:
            cells: [B, N, C]; hidden cells are not read.
            visible: [B, V] long, ascending.
        """
        copies = len(self.valid) // len(cells)
        # Both halves show the same cells, so one encoding serves them.
        encoded = self.model.mar.encode(cells, visible, self.positions).repeat(copies, 1, 1)
        image = self.model.to_language(encoded)
        length, text = image.shape[1], self.valid.shape[1]
        layout = SequenceLayout(torch.nn.functional.pad(self.valid, (0, length), value=True), (0, 0), text)
        hidden = self.model.llm.model(
            inputs_embeds=image,
            attention_mask=attention_mask(layout, self.attention, first_query=text),
            position_ids=self.lengths + torch.arange(length, device=image.device),
            past_key_values=self.cache,
            use_cache=True,
        ).last_hidden_state
        self.cache.crop(-length)
        return self.model.mar.decode(
            self.model.from_language(encoded, hidden), visible.repeat(copies, 1), self.positions
        )

    def reveal(
        self, conditions: Tensor, predicted: Tensor, noise: Tensor, *, guidance: float, temperature: float
    ) -> Tensor:
        """Draw the predicted cells, [B, K, C].

        Args:
            conditions: [R, N, decoder width].
            predicted: [B, K] long, ascending.
            noise: [B, K, 1 + S, C].
            guidance: Scale of classifier-free guidance; without unconditional rows it must be 1.
            temperature: Factor of the noise of the denoising steps.
        """
        copies = len(conditions) // len(predicted)
        rows = gather_rows(conditions, predicted.repeat(copies, 1)).flatten(0, 1)
        if guidance == 1.0:
            rows = rows[: predicted.numel()]
        cells = self.model.mar.diffloss.sample(
            rows, noise.flatten(0, 1), times=self.times, guidance=guidance, temperature=temperature
        )
        return cells.unflatten(0, predicted.shape)

    def run(self, plan: Sequence[Iteration], drawn: Draws, *, temperature: float = 1.0) -> Tensor:
        """Return the latents [B, h, w, C] of whole images."""
        images = torch.arange(len(drawn.orders), device=drawn.orders.device).unsqueeze(1)
        cells = torch.zeros_like(drawn.noise[:, :, 0])
        for step in (step for step in plan if step.remaining < step.hidden):
            visible = drawn.orders[:, step.hidden :].sort(dim=1).values
            predicted = drawn.orders[:, step.remaining : step.hidden].sort(dim=1).values
            revealed = self.reveal(
                self.conditions(cells, visible),
                predicted,
                drawn.noise[images, predicted],
                guidance=step.guidance,
                temperature=temperature,
            )
            cells = cells.scatter(1, predicted.unsqueeze(-1).expand_as(revealed), revealed)
        return cells.unflatten(1, self.grid)


def draw(
    backbone: Harmon, prompts: Sequence[str], *, seeds: Sequence[int], settings: GenerationSettings
) -> Iterator[Image]:
    """Return an iterator of one image per prompt, in order; see `Backbone.generate`.

    Raises:
        ValueError: If there is not one seed per prompt, or an option is unknown.
    """
    unknown = sorted(set(settings.options) - set(OPTIONS))
    if len(prompts) != len(seeds) or unknown:
        raise ValueError(f"{len(prompts)} prompts with {len(seeds)} seeds; unknown options: {unknown or 'none'}.")
    size = settings.batch_size or max(1, len(prompts))
    return (
        image
        for start in range(0, len(prompts), size)
        for image in _draw_batch(backbone, prompts[start : start + size], seeds[start : start + size], settings)
    )


def _draw_batch(
    backbone: Harmon, prompts: Sequence[str], seeds: Sequence[int], settings: GenerationSettings
) -> list[Image]:
    model, tokenizer = backbone.model, backbone.tokenizer
    side = backbone.card.image_size_px // model.config.vae.stride_px
    different = list(dict.fromkeys(prompts))
    texts = [tokenizer.caption(prompt) for prompt in different]
    rows = [different.index(prompt) for prompt in prompts]
    if settings.cfg_scale != 1.0:
        rows += [len(texts)] * len(prompts)
        texts.append(tokenizer.request(NO_CAPTION))
    plan = iterations(side * side, settings.num_steps, cfg_scale=settings.cfg_scale, cfg_schedule=settings.cfg_schedule)
    drawn = draws(
        prompts,
        seeds,
        num_cells=side * side,
        num_steps=model.config.mar.diffusion.num_sampling_steps,
        channels=model.config.vae.embed_dim,
    ).to(backbone.device)
    with inference(model, precision=settings.options.get("precision", "auto")):
        sampler = Sampler(
            model,
            tokenizer.pad(texts, device=backbone.device),
            rows,
            grid=(side, side),
            attention=backbone.conditioning.attention,
        )
        latents = sampler.run(plan[-backbone.last_steps :], drawn, temperature=settings.temperature)
    return decoded(latents, model.decode_latents, size_px=backbone.card.image_size_px)
