"""OpenUni's sampling: the solver, guidance, batches, and images redrawn; its answers."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from openuni_tiny import CARD, CONFIG, changed, picture, rng, tiny_openuni
from torch import Tensor

from segros_train.backbones.openuni import sampling
from segros_train.backbones.openuni.adapter import OpenUni
from segros_train.backbones.openuni.flow import schedule, solve

SETTINGS = replace(CARD.settings, num_steps=4, cfg_scale=2.0)
PROMPTS = ("a photo of a red circle", "a photo of two blue squares", "a photo of a red circle")


@pytest.fixture(scope="module")
def openuni(tmp_path_factory: pytest.TempPathFactory) -> OpenUni:
    return tiny_openuni(tmp_path_factory.mktemp("openuni"))


def curved(state: Tensor, timestep: int) -> Tensor:
    return torch.sin(3 * state) + timestep / 500


@settings(max_examples=20, deadline=None)
@given(num_steps=st.integers(1, 30), shift=st.sampled_from([1.0, 3.0, 6.0]))
def test_the_solver_is_the_librarys(num_steps: int, shift: float) -> None:
    noise = torch.randn(2, 3, 4, 4, generator=rng(num_steps))
    library = DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift)
    library.set_timesteps(num_steps)
    state = noise
    for timestep in library.timesteps:
        state = library.step(curved(state, int(timestep)), timestep, state, return_dict=False)[0]
    mine = solve(noise, schedule(num_steps, shift=shift), curved)
    torch.testing.assert_close(mine, state, rtol=1e-4, atol=1e-4)


@given(num_steps=st.integers(1, 60), shift=st.floats(1.0, 8.0))
def test_noise_falls_from_almost_all_to_none(num_steps: int, shift: float) -> None:
    levels = schedule(num_steps, shift=shift)
    assert len(levels.sigmas) == num_steps + 1 == len(levels.timesteps) + 1
    assert levels.sigmas[-1] == 0.0
    assert all(high > low for high, low in zip(levels.sigmas, levels.sigmas[1:], strict=False))
    exact = [math.floor(1000 * sigma + 1e-3) for sigma in levels.sigmas[:-1]]
    assert all(abs(a - b) <= 1 for a, b in zip(exact, levels.timesteps, strict=True))


def test_a_draw_takes_a_step() -> None:
    with pytest.raises(ValueError, match="at least one step"):
        schedule(0)


def test_what_is_computed_once_gives_the_generators_own_velocity(openuni: OpenUni) -> None:
    model = openuni.model
    state = torch.randn(2, *openuni.latent_shape, generator=rng())
    with torch.no_grad():
        conditions = openuni.conditions([openuni.tokenizer.caption(text) for text in PROMPTS[:2]])
        mine = sampling.guided(model, conditions, conditions, scale=1.0)(state, 371)
        library = model.velocity(state, conditions, torch.full((2,), 371.0))
    torch.testing.assert_close(mine, library, rtol=1e-4, atol=1e-4)


def test_guidance_goes_beyond_the_conditional_velocity(openuni: OpenUni) -> None:
    state = torch.randn(1, *openuni.latent_shape, generator=rng())
    with torch.no_grad():
        conditions = openuni.conditions([openuni.tokenizer.caption(PROMPTS[0])])
        empty = openuni.conditions([openuni.tokenizer.no_caption()])
        plain, without = (
            sampling.guided(openuni.model, rows, empty, scale=1.0)(state, 500) for rows in (conditions, empty)
        )
        for scale in (0.0, 0.5, 4.5):
            mixed = sampling.guided(openuni.model, conditions, empty, scale=scale)(state, 500)
            torch.testing.assert_close(mixed, without + scale * (plain - without), rtol=1e-3, atol=1e-3)


def images(openuni: OpenUni, batch_size: int) -> list[bytes]:
    drawn = openuni.generate(PROMPTS, seeds=(0, 1, 2), settings=replace(SETTINGS, batch_size=batch_size))
    return [image.tobytes() for image in drawn]


def test_an_image_does_not_depend_on_its_batch(openuni: OpenUni) -> None:
    alone, pairs, together = (images(openuni, size) for size in (1, 2, 3))
    for others in (pairs, together):
        for image, other in zip(alone, others, strict=True):
            assert max(abs(a - b) for a, b in zip(image, other, strict=True)) <= 2
    assert alone[0] != alone[2]


def test_a_prompt_is_read_once_per_run_and_the_empty_one_too(openuni: OpenUni, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    ask = openuni.conditions
    monkeypatch.setattr(openuni, "conditions", lambda prompts: read.append(len(prompts)) or ask(prompts))
    prompts = [*PROMPTS, *PROMPTS]
    list(openuni.generate(prompts, seeds=range(6), settings=replace(SETTINGS, batch_size=2)))
    assert sum(read) == len(set(PROMPTS)) + 1


def test_without_guidance_the_empty_prompt_is_not_read(openuni: OpenUni, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    ask = openuni.conditions
    monkeypatch.setattr(openuni, "conditions", lambda prompts: asked.extend(prompts) or ask(prompts))
    list(openuni.generate(PROMPTS[:1], seeds=[0], settings=replace(SETTINGS, cfg_scale=1.0)))
    assert openuni.tokenizer.no_caption() not in asked


def test_prompts_need_seeds_and_known_options(openuni: OpenUni) -> None:
    with pytest.raises(ValueError, match="1 prompts with 2 seeds"):
        openuni.generate(["a"], seeds=[0, 1], settings=SETTINGS)
    with pytest.raises(ValueError, match="colour"):
        openuni.generate(["a"], seeds=[0], settings=replace(SETTINGS, options={"colour": 1}))


def test_an_image_is_redrawn_with_a_request_whatever_stands_beside_it(openuni: OpenUni) -> None:
    pictures, asks = [picture(0), picture(1)], ["Keep the image as it is.", "Make it red."]
    together = [image.tobytes() for image in openuni.redraw(pictures, asks, seeds=[3, 4], settings=SETTINGS)]
    (alone,) = openuni.redraw(pictures[1:], asks[1:], seeds=[4], settings=SETTINGS)
    assert max(abs(a - b) for a, b in zip(together[1], alone.tobytes(), strict=True)) <= 2
    (other,) = openuni.redraw([picture(2)], asks[1:], seeds=[4], settings=SETTINGS)
    assert other.tobytes() != alone.tobytes()


def test_a_redrawn_image_depends_on_its_request(openuni: OpenUni) -> None:
    first, second = (
        next(openuni.redraw([picture(0)], [ask], seeds=[0], settings=SETTINGS)) for ask in ("Red.", "Blue.")
    )
    assert first.tobytes() != second.tobytes()


def test_answers_are_the_same_alone_and_beside_longer_questions(openuni: OpenUni) -> None:
    pictures = [[picture(0)], [picture(1), picture(2)]]
    questions = ["Is it red?", "How many circles are there in the two images?"]
    together = openuni.answer(pictures, questions, max_new_tokens=6)
    alone = [openuni.answer([p], [q], max_new_tokens=6)[0] for p, q in zip(pictures, questions, strict=True)]
    assert together == alone


def test_a_question_about_an_image_of_several_tiles_is_answered(tmp_path: Path) -> None:
    backbone = tiny_openuni(tmp_path, changed(max_tiles=4))
    wide = picture(3, 192, 96)
    scores = backbone.choice_logprobs([[wide]], ["Is it red?"], [("Yes", "No")])
    one = tiny_openuni(tmp_path, CONFIG).choice_logprobs([[wide]], ["Is it red?"], [("Yes", "No")])
    assert scores != one
    assert all(value < 0 for value in scores[0])


def test_a_choice_scores_what_greedy_decoding_would_pick(openuni: OpenUni) -> None:
    tokens = [openuni.tokenizer.tokenizer.decode([index]) for index in range(6, 300)]
    single = [token for token in tokens if len(openuni.tokenizer.ids(token)) == 1]
    (row,) = openuni.choice_logprobs([[picture(0)]], ["Is it red?"], [single])
    assert math.fsum(map(math.exp, row)) <= 1 + 1e-4


def test_a_question_needs_an_image_and_a_choice_a_token(openuni: OpenUni) -> None:
    with pytest.raises(ValueError, match="no image"):
        openuni.answer([[]], ["Is it red?"], max_new_tokens=2)
    with pytest.raises(ValueError, match="no token"):
        openuni.choice_logprobs([[picture(0)]], ["Is it red?"], [("",)])
    with pytest.raises(ValueError, match="at least one token"):
        openuni.answer([[picture(0)]], ["Is it red?"], max_new_tokens=0)
