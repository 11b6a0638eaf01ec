"""OpenUni's sampling against recorded runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from bounds import close, resized
from openuni_golden import Golden, load_golden
from torch import Tensor

from segros_train.backbones.common.images import to_images
from segros_train.backbones.openuni.flow import schedule
from segros_train.backbones.openuni.sampling import guided, sample

pytestmark = pytest.mark.usefixtures("in_float64")


@pytest.fixture(scope="module")
def golden(golden_set: Callable[[str], Path]) -> Golden:
    return load_golden(golden_set("openuni"))


@pytest.fixture(autouse=True)
def without_gradient() -> Iterator[None]:
    with torch.no_grad():
        yield


def test_the_noise_levels_are_the_recorded_ones(golden: Golden) -> None:
    levels = schedule(golden.steps(), shift=golden.model.config.flow_shift)
    assert list(levels.timesteps) == golden["e.timesteps"].tolist()
    close(torch.tensor(levels.sigmas), golden["e.sigmas"])


def halves(golden: Golden, ids: Tensor, valid: Tensor, images: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the conditions of a recorded batch: conditional rows, then as many unconditional ones."""
    with_caption, without = golden.conditions(ids, valid, images).chunk(2)
    return with_caption, without


def test_every_step_of_a_run_follows_the_recorded_one(golden: Golden) -> None:
    conditions, empty = halves(golden, golden["e.input_ids"], golden["e.attention_mask"])
    steps = golden["e.timesteps"].tolist()
    velocity = guided(golden.model, conditions, empty, scale=1.0)
    for state, outputs, timestep in zip(golden["e.model_inputs"], golden["e.model_outputs"], steps, strict=True):
        without, with_caption = outputs.chunk(2)
        close(velocity(state, int(timestep)), with_caption)
        scale = golden.values["sampling"]["cfg_scale"]
        expected = without + scale * (with_caption - without)
        both = guided(golden.model, conditions, empty, scale=scale)
        close(both(state, int(timestep)), expected)


def test_a_whole_run_ends_in_the_recorded_image(golden: Golden) -> None:
    conditions, empty = halves(golden, golden["e.input_ids"], golden["e.attention_mask"])
    states: list[Tensor] = []
    latents = run(golden, conditions, empty, golden["e.init_noise"], report=states.append)
    close(torch.stack(states), golden["e.model_inputs"])
    close(latents, golden["e.final_latents"])
    close(golden.model.decode_latents(latents), golden["e.pixels"])


def test_one_unconditional_row_serves_every_image(golden: Golden) -> None:
    conditions, empty = halves(golden, golden["e.input_ids"], golden["e.attention_mask"])
    latents = run(golden, conditions, empty[:1], golden["e.init_noise"])
    close(latents, golden["e.final_latents"])


def test_an_image_is_redrawn_from_itself_as_recorded(golden: Golden) -> None:
    images = golden["a.pixel_values"][:1].expand(2, -1, -1, -1)
    conditions, empty = halves(golden, golden["e.i2i_ids"], golden["e.i2i_mask"], images)
    latents = run(golden, conditions, empty, golden["e.i2i_init_noise"])
    units = resized(max(images.shape[-1], golden["a.vit_input"].shape[-1]))
    close(latents, golden["e.i2i_final_latents"], units=units)
    close(golden.model.decode_latents(latents), golden["e.i2i_pixels"], units=units)


def test_pixels_become_the_recorded_levels(golden: Golden) -> None:
    images = np.stack([np.asarray(image) for image in to_images(golden["e.pixels"])])
    recorded = golden["e.uint8"].numpy().astype(int)
    assert np.abs(images.transpose(0, 3, 1, 2).astype(int) - recorded).max() <= 1


def test_the_noise_of_a_run_is_drawn_from_its_seed(golden: Golden) -> None:
    rng = torch.Generator().manual_seed(golden.values["sampling"]["seed"])
    noise = golden["e.init_noise"]
    close(torch.randn(noise.shape, generator=rng), noise)


def run(golden: Golden, conditions: Tensor, empty: Tensor, noise: Tensor, **more: Callable[[Tensor], None]) -> Tensor:
    scale = golden.values["sampling"]["cfg_scale"]
    return sample(golden.model, conditions, empty, noise, num_steps=golden.steps(), cfg_scale=scale, **more)
