"""Harmon's sampling against recorded runs."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from bounds import close, doubled, own_units
from harmon_golden import Golden, load_golden
from torch import Tensor

from segros_train.backbones.common.texts import Prompts
from segros_train.backbones.harmon.adapter import visible_indices
from segros_train.backbones.harmon.diffusion import sampling_steps, training_steps
from segros_train.backbones.harmon.sampling import Draws, Iteration, Sampler, iterations


@pytest.fixture(scope="module")
def golden(golden_set: Callable[[str], Path]) -> Golden:
    return load_golden(golden_set("harmon"))


@pytest.fixture(scope="module")
def single(golden_set: Callable[[str], Path]) -> Golden:
    return load_golden(golden_set("harmon"), wide=False)


@dataclass(frozen=True)
class Run:
    """A recorded sampling run of B images."""

    given: Mapping[str, Tensor]
    arguments: Mapping[str, Any]
    plan: tuple[Iteration, ...]
    orders: Tensor

    @property
    def num_images(self) -> int:
        return len(self.orders)

    def revealing(self) -> Iterator[tuple[int, Iteration]]:
        """Yield the iterations that reveal cells, with their numbers in the record."""
        return ((index, step) for index, step in enumerate(self.plan) if step.remaining < step.hidden)

    def predicted(self, step: Iteration) -> Tensor:
        return self.orders[:, step.remaining : step.hidden].sort(dim=1).values

    def noise(self, index: int) -> Tensor:
        """Return the recorded noise [B, K, 1 + S, C] of an iteration, conditional rows only."""
        start = self.given[f"iter{index}.init_noise"]
        steps = self.given[f"iter{index}.step_noise"][:, : len(start)]
        rows = torch.cat([start.unsqueeze(0), steps]).transpose(0, 1)
        return rows.unflatten(0, (self.num_images, -1))

    def draws(self) -> Draws:
        """Return all recorded noise by cell."""
        first = self.noise(0)
        noise = torch.full((*self.orders.shape, *first.shape[2:]), math.nan, dtype=first.dtype)
        for index, step in self.revealing():
            noise[torch.arange(self.num_images).unsqueeze(1), self.predicted(step)] = self.noise(index)
        return Draws(self.orders, noise)


def recorded_run(golden: Golden, case: str) -> Run:
    given = golden.group(f"sample.{case}")
    arguments = golden.extra(f"sample.{case}.args")
    rows, num_cells = given["orders"].shape
    plan = iterations(
        num_cells, arguments["num_iter"], cfg_scale=arguments["cfg"], cfg_schedule=arguments["cfg_schedule"]
    )
    return Run(given, arguments, plan, given["orders"][: rows if arguments["cfg"] == 1.0 else rows // 2])


def sampler(golden: Golden, run: Run) -> Sampler:
    ids, valid = run.given["input_ids"], run.given["attention_mask"].bool()
    prompts = Prompts(ids, valid, torch.zeros_like(valid))
    return Sampler(golden.model, prompts, range(len(ids)), grid=tuple(run.arguments["image_shape"]))


@pytest.fixture
def without_gradient() -> Iterator[None]:
    with torch.no_grad():
        yield


def conditions(golden: Golden, run: Run) -> Iterator[Tensor]:
    """Yield the conditions of every iteration that reveals cells, from the recorded tokens."""
    drawing = sampler(golden, run)
    for index, step in run.revealing():
        visible = visible_indices(run.given[f"iter{index}.mask_in"].bool())[: run.num_images]
        assert torch.equal(visible, run.orders[:, step.hidden :].sort(dim=1).values)
        yield drawing.conditions(run.given[f"iter{index}.tokens_in"].flatten(1, 2)[: run.num_images], visible)


def revealed(golden: Golden, run: Run) -> Iterator[Tensor]:
    """Yield the cells that every iteration draws, from the recorded conditions."""
    drawing = sampler(golden, run)
    for index, step in run.revealing():
        full, chosen = run.given[f"iter{index}.z_full"], run.given[f"iter{index}.z_pred"]
        places = run.predicted(step).repeat(len(full) // run.num_images, 1)
        given = torch.full_like(full, math.nan)
        given[torch.arange(len(full)).unsqueeze(1), places] = chosen.unflatten(0, places.shape)
        noise, temperature = run.noise(index), run.arguments["temperature"]
        cells = drawing.reveal(given, run.predicted(step), noise, guidance=step.guidance, temperature=temperature)
        yield cells.flatten(0, 1)


def drawn(golden: Golden, run: Run) -> tuple[Tensor, Tensor]:
    """Return the latents and the images of a whole run."""
    latents = sampler(golden, run).run(run.plan, run.draws(), temperature=run.arguments["temperature"])
    return latents, golden.model.decode_latents(latents)


@pytest.mark.usefixtures("without_gradient")
@pytest.mark.golden_cases("harmon", "sample")
def test_every_iteration_follows_the_recorded_one(golden: Golden, single: Golden, case: str) -> None:
    run = recorded_run(golden, case)
    assert [step.guidance for step in run.plan] == pytest.approx(run.arguments["cfg_per_iter"])
    with doubled():
        ours = list(zip(conditions(golden, run), revealed(golden, run), strict=True))
    rounded = revealed(single, recorded_run(single, case))
    for (index, _), (condition, cells), ours32 in zip(run.revealing(), ours, rounded, strict=True):
        close(condition, run.given[f"iter{index}.z_full"])
        close(cells, run.given[f"iter{index}.sampled"][: len(cells)], units=own_units(ours32, cells))


@pytest.mark.usefixtures("without_gradient")
@pytest.mark.golden_cases("harmon", "sample")
def test_a_whole_run_ends_in_the_recorded_image(golden: Golden, single: Golden, case: str) -> None:
    run = recorded_run(golden, case)
    with doubled():
        latents, images = drawn(golden, run)
    latents32, images32 = drawn(single, recorded_run(single, case))
    close(latents, run.given["final_latents"][: run.num_images], units=own_units(latents32, latents))
    close(images, run.given["image"], units=own_units(images32, images))


def indexed(tables: Mapping[str, Any], name: str) -> dict[int, float]:
    """Read an entry like `betas[0,1,500]` as values by index."""
    key = next(key for key in tables if key.startswith(f"{name}["))
    return dict(zip(map(int, key[len(name) + 1 : -1].split(",")), tables[key], strict=True))


def test_the_noise_schedules_hold_the_recorded_values(golden: Golden) -> None:
    tables = golden.extra("diffusion_tables")
    steps = training_steps()
    assert len(steps) == tables["train_T"]
    betas, kept = indexed(tables, "betas"), indexed(tables, "alphas_cumprod")
    assert {index: math.exp(steps[index].log_beta) for index in betas} == pytest.approx(betas, rel=1e-12)
    assert {index: steps[index].signal ** 2 for index in kept} == pytest.approx(kept, rel=1e-12)
    timesteps, respaced = sampling_steps(len(tables["timestep_map_100"]))
    assert list(timesteps) == tables["timestep_map_100"]
    here, _ = sampling_steps(golden.model.config.mar.diffusion.num_sampling_steps)
    assert list(here) == tables["timestep_map_this_config"]
    betas = indexed(tables, "respaced_100_betas")
    assert {index: math.exp(respaced[index].log_beta) for index in betas} == pytest.approx(betas, rel=1e-12)


def test_iterations_hide_the_recorded_numbers_of_cells(golden: Golden) -> None:
    for name, lengths in golden.extra("mask_len_schedule").items():
        num_cells, num_steps = map(int, re.fullmatch(r"N(\d+)_iter(\d+)", name).groups())
        assert [step.hidden for step in iterations(num_cells, num_steps)] == lengths[:-1]
