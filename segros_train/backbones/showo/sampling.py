"""Drawing images: in each iteration every hidden cell is drawn, and the least certain ones are hidden again.

With g the guidance, l the logits over the codes of hidden cells, T iterations, N cells and u cells hidden now:

- l = (1 + g) l_caption - g l_empty; a code is drawn from softmax(l) by an exponential race, argmax p / e;
- m = max(1, min(u - 1, floor(N cos(pi/2 (s + 1) / T)))) cells are hidden again, of the lowest
  log p + t G, with Gumbel noise G and a temperature t that is multiplied by 1 - (s + 1) / T in every iteration;
- the last iteration's codes are the image.

The prompt never sees the image, so its keys and values are computed once per prompt; an iteration runs the image
block alone, without a mask where no prompt of the batch is padded. `GenerationSettings.cfg_scale` is 1 + g.

Source: showlab/Show-o models/modeling_showo.py (t2i_generate), models/sampling.py @ 45a5a2de
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor
from transformers import DynamicCache

from segros_train.backbones.common.images import decoded
from segros_train.backbones.common.modes import inference
from segros_train.backbones.showo.model import ShowoModel
from segros_train.draws import keyed_seed

if TYPE_CHECKING:
    from segros_train.backbones.showo.adapter import Showo
    from segros_train.types import GenerationSettings

__all__ = ["Iteration", "Sampler", "Step", "draw", "item_noise", "iterations", "num_hidden", "step", "to_images"]

OPTIONS = ("precision", "prompt_cache")
Noise = Callable[[int], tuple[Tensor, Tensor]]
"""Number of the iteration to exponential noise [B, N, K] and uniform noise [B, N]."""


@dataclass(frozen=True)
class Iteration:
    """One iteration: `hidden` cells of all N would be hidden after it; scale of its Gumbel noise."""

    hidden: int
    temperature: float


@dataclass(frozen=True)
class Step:
    """What an iteration did.

    Attributes:
        probabilities: [B, N, K] distribution of every cell.
        confidence: [B, N] probability of the drawn code; the largest float32 at known cells.
        hidden_again: [B, N] bool.
        codes: [B, N] codes of all cells, before any is hidden again.
    """

    probabilities: Tensor
    confidence: Tensor
    hidden_again: Tensor
    codes: Tensor


def iterations(num_cells: int, num_steps: int, *, temperature: float = 1.0) -> tuple[Iteration, ...]:
    """Plan the iterations of a draw.

    Raises:
        ValueError: If `num_steps` is below 1.
    """
    if num_steps < 1:
        raise ValueError(f"A draw takes at least one iteration, asked for {num_steps}.")
    plan = []
    for number in range(1, num_steps + 1):
        share = number / num_steps
        temperature *= 1.0 - share
        ratio = torch.cos(torch.tensor(share, dtype=torch.float32) * (math.pi * 0.5))
        plan.append(Iteration(int((num_cells * ratio).floor()), temperature))
    return tuple(plan)


def num_hidden(masking_ratio: Tensor, num_cells: int) -> Tensor:
    """Return how many cells training hides, [B] long: N r rounded half to even, at least 1."""
    return (num_cells * masking_ratio).round().long().clamp(min=1)


def step(logits: Tensor, cells: Tensor, iteration: Iteration, *, exponential: Tensor, uniform: Tensor) -> Step:
    """Carry out one iteration.

    Args:
        logits: [B, N, K] over the codes, guidance applied.
        cells: [B, N] codes, -1 where hidden.
        iteration: What to do.
        exponential: [B, N, K] noise of the race.
        uniform: [B, N] noise of the order of hiding.
    """
    probabilities = logits.float().softmax(dim=-1)
    hidden = cells < 0
    codes = torch.where(hidden, (probabilities / exponential).argmax(dim=-1), cells)
    drawn = probabilities.gather(-1, codes.unsqueeze(-1)).squeeze(-1)
    confidence = torch.where(hidden, drawn, torch.finfo(torch.float32).max)
    gumbel = -(-uniform.clamp(min=1e-20).log()).clamp(min=1e-20).log()
    certainty = confidence.clamp(min=1e-20).log() + iteration.temperature * gumbel
    count = (hidden.sum(dim=1, keepdim=True) - 1).clamp(max=iteration.hidden).clamp(min=1)
    count = count.clamp(max=cells.shape[1] - 1)
    cut = certainty.sort(dim=1).values.gather(1, count)
    return Step(probabilities, confidence, certainty < cut, codes)


def item_noise(prompts: Sequence[str], seeds: Sequence[int], *, shape: tuple[int, int], device: torch.device) -> Noise:
    """Return noise whose every row comes from a generator of its own, keyed by prompt and seed.

    Args:
        prompts: B prompts.
        seeds: B seeds.
        shape: N cells and K codes.
        device: Where the noise is drawn: a GPU's differs from a CPU's.
    """
    keys = zip(seeds, prompts, strict=True)
    rngs = [torch.Generator(device).manual_seed(keyed_seed(seed, "draw", prompt)) for seed, prompt in keys]

    def noise(_: int) -> tuple[Tensor, Tensor]:
        pairs = [
            (
                torch.empty(shape, device=device).exponential_(1, generator=rng),
                torch.rand(shape[0], generator=rng, device=device),
            )
            for rng in rngs
        ]
        races, orders = zip(*pairs, strict=True)
        return torch.stack(races), torch.stack(orders)

    return noise


class Sampler:
    """Draw the codes of B images; rows are B conditional ones and, with guidance, B unconditional."""

    def __init__(
        self,
        model: ShowoModel,
        prompts: Sequence[Sequence[int]],
        rows: Sequence[int],
        *,
        pad_id: int,
        borders: tuple[int, int],
        use_cache: bool = True,
    ) -> None:
        """Read the prompts.

        Args:
            model: The model, in eval mode; all calls happen without gradient.
            prompts: Ids of different prompts, each read once.
            rows: Index of the prompt of each row.
            pad_id: Id that fills shorter prompts on the left.
            borders: Ids in front of and behind the codes.
            use_cache: Whether to keep the prompts' keys and values instead of running them in every iteration.
        """
        self.model, self.borders, self.use_cache = model, borders, use_cache
        width = max(map(len, prompts))
        fill = [width - len(prompt) for prompt in prompts]
        device = model.device
        ids = torch.tensor([[pad_id] * pads + list(prompt) for pads, prompt in zip(fill, prompts, strict=True)])
        index = torch.tensor(list(rows), device=device)
        pads = torch.tensor(fill, device=device).unsqueeze(1)
        valid = torch.arange(width, device=device) >= pads
        self._width, self._padded = width, any(fill)
        self._valid = valid[index]
        self._ids = ids.to(device)[index]
        self._cache: DynamicCache | None = None
        if use_cache:
            columns = torch.arange(width, device=device)
            causal = (columns[None, :] <= columns[:, None])[None]
            mask = (causal & (valid[:, None, :] | ~valid[:, :, None])).unsqueeze(1) if self._padded else None
            self._cache = DynamicCache(config=model.showo.config)
            model.hidden(model.embed(ids.to(device)), columns.unsqueeze(0), mask=mask, cache=self._cache)
            self._cache.batch_select_indices(index)

    def logits(self, cells: Tensor, *, guidance: float) -> Tensor:
        """Return logits over the codes [B, N, K] of cells [B, N], -1 where hidden.

        Args:
            cells: [B, N].
            guidance: g; without unconditional rows it must be 0.
        """
        config, size = self.model.config, len(cells)
        copies = len(self._ids) // size
        ids = torch.where(cells < 0, config.mask_id, cells + config.image_offset)
        first, last = (torch.full((size, 1), border, device=ids.device) for border in self.borders)
        states = self._states(torch.cat([first, ids, last], dim=1).repeat(copies, 1))
        logits = self.model.code_logits(states[:, 1:-1])
        if copies == 1:
            return logits
        captioned, empty = logits.chunk(2)
        return (1 + guidance) * captioned - guidance * empty

    def _states(self, image: Tensor) -> Tensor:
        """Return the last states of the image block, [R, N + 2, D] of ids [R, N + 2]."""
        length = image.shape[1]
        columns = torch.arange(self._width + length, device=image.device)
        if self._cache is not None:
            mask = None
            if self._padded:
                mask = torch.nn.functional.pad(self._valid, (0, length), value=True)[:, None, None]
                mask = mask.expand(-1, 1, length, -1)
            states = self.model.hidden(
                self.model.embed(image),
                columns[None, self._width :],
                mask=mask,
                causal=False,
                cache=self._cache,
            )
            self._cache.crop(-length)
            return states
        valid = torch.nn.functional.pad(self._valid, (0, length), value=True)
        allowed = (columns[None, :] <= columns[:, None]) | (columns >= self._width)[:, None]
        mask = (allowed[None] & (valid[:, None, :] | ~valid[:, :, None])).unsqueeze(1)
        ids = torch.cat([self._ids, image], dim=1)
        return self.model.hidden(self.model.embed(ids), columns[None], mask=mask)[:, self._width :]

    def run(self, plan: Sequence[Iteration], cells: Tensor, noise: Noise, *, guidance: float) -> Iterator[Step]:
        """Yield every iteration; the last one's codes are the image.

        Args:
            plan: Iterations.
            cells: [B, N] known codes, -1 where hidden.
            noise: Source of every draw.
            guidance: g.
        """
        for number, iteration in enumerate(plan):
            exponential, uniform = noise(number)
            done = step(
                self.logits(cells, guidance=guidance), cells, iteration, exponential=exponential, uniform=uniform
            )
            yield done
            cells = done.codes.masked_fill(done.hidden_again, -1)


def to_images(pixels: Tensor) -> list[Image.Image]:
    """Return RGB images of pixels [B, 3, height, width], about [-1, 1]; values are cut, not rounded.

    Source: showlab/Show-o inference_t2i.py @ 45a5a2de
    """
    levels = (torch.clamp((pixels.float() + 1) / 2, 0, 1) * 255).permute(0, 2, 3, 1).to("cpu", torch.uint8)
    return [Image.fromarray(level.numpy()) for level in levels]


def draw(
    backbone: Showo, prompts: Sequence[str], *, seeds: Sequence[int], settings: GenerationSettings
) -> Iterator[Image.Image]:
    """Return an iterator of one image per prompt, in order; see `Backbone.generate`.

    Raises:
        ValueError: If there is not one seed per prompt, or an option or schedule is unknown.
    """
    unknown = sorted(set(settings.options) - set(OPTIONS))
    if len(prompts) != len(seeds) or unknown:
        raise ValueError(f"{len(prompts)} prompts with {len(seeds)} seeds; unknown options: {unknown or 'none'}.")
    if settings.cfg_schedule != "constant":
        raise ValueError(f"Show-o's guidance is constant, asked for {settings.cfg_schedule!r}.")
    size = settings.batch_size or max(1, len(prompts))
    return (
        image
        for start in range(0, len(prompts), size)
        for image in _draw_batch(backbone, prompts[start : start + size], seeds[start : start + size], settings)
    )


def _draw_batch(
    backbone: Showo, prompts: Sequence[str], seeds: Sequence[int], settings: GenerationSettings
) -> list[Image.Image]:
    model, tokenizer = backbone.model, backbone.tokenizer
    side = backbone.card.image_size_px // model.config.vq.stride_px
    limit = model.config.max_caption_tokens + 1
    different = list(dict.fromkeys(prompts))
    texts = [tokenizer.request(prompt, limit=limit) for prompt in different]
    rows = [different.index(prompt) for prompt in prompts]
    guidance = settings.cfg_scale - 1.0
    if guidance != 0:
        rows += [len(texts)] * len(prompts)
        texts.append(tokenizer.request("", limit=limit))
    special = tokenizer.special
    plan = iterations(side * side, settings.num_steps, temperature=settings.temperature)
    shape = (side * side, model.config.vq.codebook_size)
    noise = item_noise(prompts, seeds, shape=shape, device=backbone.device)
    with inference(model, precision=settings.options.get("precision", "auto")):
        sampler = Sampler(
            model,
            texts,
            rows,
            pad_id=special["pad"],
            borders=(special["soi"], special["eoi"]),
            use_cache=settings.options.get("prompt_cache", True),
        )
        cells = torch.full((len(prompts), side * side), -1, device=backbone.device)
        for done in sampler.run(plan[-backbone.last_steps :], cells, noise, guidance=guidance):
            codes = done.codes
        codes = codes.unflatten(1, (side, side))
        return decoded(codes, model.decode_codes, size_px=backbone.card.image_size_px, images=to_images)
