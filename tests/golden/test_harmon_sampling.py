"""Harmon's sampling against recorded runs, at the tolerances they were checked with."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from harmon_golden import Golden, close, load_golden
from torch import Tensor

from segros_train.backbones.harmon.adapter import visible_indices
from segros_train.backbones.harmon.diffusion import sampling_steps, training_steps
from segros_train.backbones.harmon.sampling import Draws, Iteration, Sampler, iterations
from segros_train.backbones.texts import Prompts


@pytest.fixture(scope="module")
def golden(golden_set: Callable[[str], Path]) -> Golden:
    return load_golden(golden_set("harmon"))


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
        noise = torch.full((*self.orders.shape, *first.shape[2:]), math.nan)
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


@pytest.mark.usefixtures("without_gradient")
@pytest.mark.golden_cases("harmon", "sample")
def test_every_iteration_follows_the_recorded_one(golden: Golden, case: str) -> None:
    run = recorded_run(golden, case)
    drawing = sampler(golden, run)
    assert [step.guidance for step in run.plan] == pytest.approx(run.arguments["cfg_per_iter"])
    for index, step in run.revealing():
        given = {
            key: run.given[f"iter{index}.{key}"] for key in ("mask_in", "tokens_in", "z_full", "z_pred", "sampled")
        }
        visible = visible_indices(given["mask_in"].bool())[: run.num_images]
        assert torch.equal(visible, run.orders[:, step.hidden :].sort(dim=1).values)
        cells = given["tokens_in"].flatten(1, 2)[: run.num_images]
        close(drawing.conditions(cells, visible), given["z_full"], tolerance=1e-5)
        predicted = run.predicted(step)
        recorded = torch.full_like(given["z_full"], math.nan)
        copies = len(recorded) // run.num_images
        places = predicted.repeat(copies, 1)
        recorded[torch.arange(len(recorded)).unsqueeze(1), places] = given["z_pred"].unflatten(0, places.shape)
        revealed = drawing.reveal(
            recorded,
            predicted,
            run.noise(index),
            guidance=step.guidance,
            temperature=run.arguments["temperature"],
        )
        close(revealed.flatten(0, 1), given["sampled"][: predicted.numel()], tolerance=2e-4)


@pytest.mark.usefixtures("without_gradient")
@pytest.mark.golden_cases("harmon", "sample")
def test_a_whole_run_ends_in_the_recorded_image(golden: Golden, case: str) -> None:
    run = recorded_run(golden, case)
    latents = sampler(golden, run).run(run.plan, run.draws(), temperature=run.arguments["temperature"])
    close(latents, run.given["final_latents"][: run.num_images], tolerance=2e-2)
    close(golden.model.decode_latents(latents), run.given["image"], tolerance=2e-2)


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
