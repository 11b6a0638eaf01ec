"""Drawing images: the flow from noise to latents under guidance.

Everything that does not change from step to step is computed once: a prompt passes the language model and the
connector once per run, the empty prompt too, and the generator's projection of the conditions with its keys and
values of every block once per image.

Source: wusize/OpenUni src/models/openuni/internvl3_sana_hf.py (generate) @ d1703fc
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from segros_train.backbones.common.images import decoded, to_pixels
from segros_train.backbones.common.modes import inference
from segros_train.backbones.openuni.flow import schedule, solve
from segros_train.backbones.openuni.model import OpenUniModel
from segros_train.backbones.openuni.prompts import NO_CAPTION

if TYPE_CHECKING:
    from PIL.Image import Image

    from segros_train.backbones.openuni.adapter import OpenUni
    from segros_train.types import GenerationSettings

__all__ = ["draw", "guided", "initial_noise", "redraw", "sample"]

OPTIONS = ("precision",)


class _Generator:
    """The image generator with its conditions read: what a step needs is a state and a timestep."""

    def __init__(self, model: OpenUniModel, conditions: Tensor) -> None:
        """Project the conditions [B, Q, caption channels] to keys and values of every block."""
        self.net = net = model.transformer
        text = net.caption_norm(net.caption_projection(conditions))
        self.keys_and_values = [
            tuple(
                part(text).unflatten(2, (block.attn2.heads, -1)).transpose(1, 2)
                for part in (block.attn2.to_k, block.attn2.to_v)
            )
            for block in net.transformer_blocks
        ]

    def __call__(self, state: Tensor, timestep: int) -> Tensor:
        """Return the velocity [B, C, h, w] at one timestep for all rows."""
        net, grid = self.net, state.shape[2:]
        x = net.patch_embed(state)
        time, embedded = net.time_embed(
            torch.full((1,), float(timestep), device=x.device), batch_size=1, hidden_dtype=x.dtype
        )
        for block, (key, value) in zip(net.transformer_blocks, self.keys_and_values, strict=True):
            rows = block.scale_shift_table + time.view(6, -1)
            shift, scale, gate, ff_shift, ff_scale, ff_gate = rows.unbind(0)
            x = x + gate * block.attn1(block.norm1(x) * (1 + scale) + shift)
            query = block.attn2.to_q(x).unflatten(2, (block.attn2.heads, -1)).transpose(1, 2)
            seen = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
            x = x + block.attn2.to_out[0](seen)
            inner = block.norm2(x) * (1 + ff_scale) + ff_shift
            inner = block.ff(inner.transpose(1, 2).unflatten(2, grid))
            x = x + ff_gate * inner.flatten(2).transpose(1, 2)
        x = net.proj_out(net.norm_out(x, embedded, net.scale_shift_table))
        return x.transpose(1, 2).unflatten(2, grid)


def guided(model: OpenUniModel, conditions: Tensor, empty: Tensor, *, scale: float) -> Callable[[Tensor, int], Tensor]:
    """Return the guided velocity as a function of state and timestep.

    Args:
        model: The model.
        conditions: [B, Q, caption channels].
        empty: [1 or B, Q, caption channels], the conditions without a caption; not read where `scale` is 1.
        scale: Guidance; 1 switches it off.
    """
    if scale == 1.0:
        return _Generator(model, conditions)
    size = len(conditions)
    both = _Generator(model, torch.cat([empty.expand(size, -1, -1), conditions]))

    def velocity(state: Tensor, timestep: int) -> Tensor:
        without, with_caption = both(torch.cat([state, state]), timestep).float().chunk(2)
        return without + scale * (with_caption - without)

    return velocity


def sample(
    model: OpenUniModel,
    conditions: Tensor,
    empty: Tensor,
    noise: Tensor,
    *,
    num_steps: int,
    cfg_scale: float,
    report: Callable[[Tensor], None] | None = None,
) -> Tensor:
    """Return latents [B, C, h, w] drawn from noise [B, C, h, w]; arguments as in `guided` and `flow.solve`."""
    levels = schedule(num_steps, shift=model.config.flow_shift)
    return solve(noise, levels, guided(model, conditions, empty, scale=cfg_scale), report=report)


def initial_noise(prompts: Sequence[str], seeds: Sequence[int], shape: tuple[int, ...]) -> Tensor:
    """Draw where images start, [B, *shape], each from a generator of its own, keyed by prompt and seed."""
    drawn = []
    for prompt, seed in zip(prompts, seeds, strict=True):
        digest = hashlib.sha256(f"{seed}\n{prompt}".encode()).digest()
        rng = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        drawn.append(torch.randn(shape, generator=rng))
    return torch.stack(drawn)


class _Conditions:
    """Conditions by prompt, each computed once and dropped after its last image."""

    def __init__(self, backbone: OpenUni, prompts: Sequence[str]) -> None:
        self.backbone = backbone
        self.left = Counter(prompts)
        self.kept: dict[str, Tensor] = {}

    def of(self, prompts: Sequence[str]) -> Tensor:
        """Return [B, Q, caption channels]."""
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self.kept]
        if new:
            rows = [self.backbone.tokenizer.caption(prompt) for prompt in new]
            self.kept |= zip(new, self.backbone.conditions(rows), strict=True)
        found = torch.stack([self.kept[prompt] for prompt in prompts])
        self.left.subtract(prompts)
        self.kept = {prompt: value for prompt, value in self.kept.items() if self.left[prompt] > 0}
        return found


def draw(
    backbone: OpenUni, prompts: Sequence[str], *, seeds: Sequence[int], settings: GenerationSettings
) -> Iterator[Image]:
    """Return an iterator of one image per prompt, in order; see `Backbone.generate`.

    Raises:
        ValueError: If there is not one seed per prompt, or an option is unknown.
    """
    _check(prompts, seeds, settings)
    return _drawn(backbone, prompts, seeds, settings)


def _check(prompts: Sequence[str], seeds: Sequence[int], settings: GenerationSettings) -> None:
    unknown = sorted(set(settings.options) - set(OPTIONS))
    if len(prompts) != len(seeds) or unknown:
        raise ValueError(f"{len(prompts)} prompts with {len(seeds)} seeds; unknown options: {unknown or 'none'}.")


def _drawn(
    backbone: OpenUni, prompts: Sequence[str], seeds: Sequence[int], settings: GenerationSettings
) -> Iterator[Image]:
    conditions, empty = _Conditions(backbone, prompts), None
    for part in _parts(len(prompts), settings):
        with _inference(backbone, settings):
            if empty is None and settings.cfg_scale != 1.0:
                empty = backbone.conditions([backbone.tokenizer.no_caption()])
            rows = conditions.of(prompts[part])
            drawn = _images(backbone, rows, empty, (prompts[part], seeds[part]), settings)
        yield from drawn


def redraw(
    backbone: OpenUni,
    images: Sequence[Image],
    requests: Sequence[str],
    *,
    seeds: Sequence[int],
    settings: GenerationSettings,
) -> Iterator[Image]:
    """Return an iterator of each image drawn anew as its request says, from its own visual embeddings.

    The unconditional rows have the image as well; only the request is missing.

    Args:
        backbone: What draws.
        images: Images; the largest square in the middle is taken.
        requests: One per image.
        seeds: One per image.
        settings: Sampling settings.

    Raises:
        ValueError: If there is not one request and one seed per image, or an option is unknown.

    Source: wusize/OpenUni scripts/image_edit.py @ d1703fc
    """
    _check(requests, seeds, settings)
    if len(images) != len(requests):
        raise ValueError(f"{len(images)} images have {len(requests)} requests.")
    return _redrawn(backbone, images, requests, seeds, settings)


def _redrawn(
    backbone: OpenUni,
    images: Sequence[Image],
    requests: Sequence[str],
    seeds: Sequence[int],
    settings: GenerationSettings,
) -> Iterator[Image]:
    size = backbone.card.image_size_px
    for part in _parts(len(images), settings):
        pixels = torch.stack([to_pixels(_centre(image), size) for image in images[part]])
        with _inference(backbone, settings):
            seen = backbone.model.see(pixels.to(backbone.device))
            count, visual = seen.shape[1], seen.flatten(0, 1)
            asked, bare = (
                [backbone.tokenizer.request(text, num_hints=count) for text in texts]
                for texts in (requests[part], [NO_CAPTION] * len(pixels))
            )
            rows = backbone.conditions(asked, visual)
            empty = None if settings.cfg_scale == 1.0 else backbone.conditions(bare, visual)
            drawn = _images(backbone, rows, empty, (requests[part], seeds[part]), settings)
        yield from drawn


def _centre(image: Image) -> Image:
    """Cut the largest square out of the middle."""
    image = image.convert("RGB")
    side = min(image.size)
    left, top = ((extent - side) // 2 for extent in image.size)
    return image.crop((left, top, left + side, top + side))


def _parts(count: int, settings: GenerationSettings) -> Iterator[slice]:
    size = settings.batch_size or max(1, count)
    return (slice(start, start + size) for start in range(0, count, size))


def _inference(backbone: OpenUni, settings: GenerationSettings) -> AbstractContextManager[None]:
    return inference(backbone.model, precision=settings.options.get("precision", "auto"))


def _images(
    backbone: OpenUni,
    conditions: Tensor,
    empty: Tensor | None,
    key: tuple[Sequence[str], Sequence[int]],
    settings: GenerationSettings,
) -> list[Image]:
    """Draw one image per row of conditions; texts and seeds are the key of where each starts."""
    noise = initial_noise(*key, backbone.latent_shape).to(backbone.device)
    latents = sample(
        backbone.model,
        conditions,
        conditions[:1] if empty is None else empty,
        settings.temperature * noise,
        num_steps=backbone.last_steps or settings.num_steps,
        cfg_scale=settings.cfg_scale,
    )
    return decoded(latents, backbone.model.decode_latents, size_px=backbone.card.image_size_px)
