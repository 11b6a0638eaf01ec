"""Show-o's drawing against the original code, iteration by iteration, and its schedules."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from bounds import close
from showo_golden import Golden, load_golden

from segros_train.backbones.showo.sampling import Sampler, iterations, num_hidden

pytestmark = pytest.mark.usefixtures("in_float64")


@pytest.fixture(scope="module")
def golden(golden_set: Callable[[str], Path]) -> Golden:
    return load_golden(golden_set("showo"))


@pytest.mark.parametrize("use_cache", [True, False], ids=["cached", "uncached"])
@pytest.mark.golden_cases("showo", "e")
def test_every_iteration_of_a_draw_is_as_recorded(golden: Golden, case: str, use_cache: bool) -> None:
    given, asked = golden.group(f"e.{case}"), golden.values[f"e.{case}"]
    pad = golden.tokenizer.special["pad"]
    borders = (golden.tokenizer.special["soi"], golden.tokenizer.special["eoi"])
    prompts = list(given["input_ids"][:, : golden.limit])
    if "uncond_ids" in given:
        prompts += list(given["uncond_ids"][:, : golden.limit])
    texts = [[index for index in row.tolist() if index != pad] for row in prompts]
    plan = iterations(golden.num_cells, asked["timesteps"], temperature=asked["temperature"])
    with torch.no_grad():
        sampler = Sampler(golden.model, texts, range(len(texts)), pad_id=pad, borders=borders, use_cache=use_cache)
        cells = golden.to_codes(given["input_ids"][:, golden.limit + 1 : -1])
        steps = list(
            sampler.run(
                plan,
                cells,
                lambda number: (given["exp_noise"][number], given["uniform"][number]),
                guidance=asked["guidance_scale"],
            )
        )
        image = golden.model.decode_codes(steps[-1].codes.unflatten(1, (golden.side, golden.side)))
    for number, done in enumerate(steps):
        assert torch.equal(done.hidden_again, given["masking"][number].bool())
        assert torch.equal(done.hidden_again.sum(dim=1), given["mask_len"][number].long())
        recorded = given["selected_probs"][number]
        known = recorded == torch.finfo(torch.float32).max
        assert torch.equal(done.confidence[known], recorded[known])
        close(done.confidence[~known], recorded[~known])
    close(steps[0].probabilities, given["probs0"])
    close(steps[-1].probabilities, given["probs_last"])
    assert torch.equal(steps[-1].codes, given["tokens"])
    close(image, given["image"])
    temperatures = torch.tensor([iteration.temperature for iteration in plan], dtype=torch.float64)
    torch.testing.assert_close(temperatures, given["temperature"], rtol=1e-12, atol=0)


def test_the_schedules_are_as_recorded(golden: Golden) -> None:
    given = golden.group("f")
    for name in (name for name in given if name.startswith("masklen_")):
        _, num_cells, num_steps = name.split("_")
        plan = iterations(int(num_cells), int(num_steps))
        assert [iteration.hidden for iteration in plan] == given[name].long().tolist()
        recorded = given[f"temperature_{num_steps}"]
        temperatures = torch.tensor([i.temperature for i in plan], dtype=torch.float64)
        torch.testing.assert_close(temperatures, recorded, rtol=1e-12, atol=0)
    for name in (name for name in given if re.fullmatch(r"train_masked_\d+", name)):
        counts = num_hidden(torch.cos(given["t"] * (torch.pi * 0.5)), int(name.split("_")[-1]))
        assert torch.equal(counts, given[name].long())
