from __future__ import annotations

import pickle
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from harmon_tiny import CONFIG, NUM_CELLS, masks, picture, rng, tiny_harmon
from torch.utils._python_dispatch import TorchDispatchMode

from segros_train.backbone import Conditioning
from segros_train.backbones.common.modes import inference
from segros_train.backbones.harmon import answering
from segros_train.backbones.harmon.adapter import Harmon, visible_indices
from segros_train.backbones.harmon.sampling import Draws, Sampler, draws, iterations
from segros_train.backbones.harmon.transforms import to_images
from segros_train.types import GenerationSettings

PROMPTS = ("a red circle", "a big blue square .", "a green circle", "a red circle")
SEEDS = (0, 1, 2, 3)
CHANNELS = CONFIG.vae.embed_dim
STEPS = CONFIG.mar.diffusion.num_sampling_steps


@pytest.fixture(scope="module")
def harmon(tmp_path_factory: pytest.TempPathFactory) -> Harmon:
    return tiny_harmon(tmp_path_factory.mktemp("harmon"))


def assert_near(measured: torch.Tensor, expected: torch.Tensor) -> None:
    """Compare draws of the untrained head, which are in the thousands, to 1e-4 of their size."""
    torch.testing.assert_close(measured, expected, rtol=0, atol=1e-4 * expected.abs().max().item())


@pytest.fixture
def native(harmon: Harmon) -> Iterator[Harmon]:
    yield harmon
    harmon.configure(Conditioning())


def pixels(harmon: Harmon, prompts: tuple[str, ...] = PROMPTS, seeds: tuple[int, ...] = SEEDS, **settings: Any) -> Any:
    images = harmon.generate(prompts, seeds=seeds, settings=GenerationSettings(num_steps=4, **settings))
    return np.stack([np.asarray(image) for image in images]).astype(int)


def sampler(harmon: Harmon, prompts: tuple[str, ...], **options: Any) -> Sampler:
    texts = harmon.tokenizer.pad([harmon.tokenizer.caption(text) for text in prompts], device=harmon.device)
    return Sampler(harmon.model, texts, range(len(prompts)), grid=(4, 4), **options)


def drawn(prompts: tuple[str, ...], seeds: tuple[int, ...]) -> Draws:
    return draws(prompts, seeds, num_cells=NUM_CELLS, num_steps=STEPS, channels=CHANNELS)


def test_an_image_does_not_depend_on_its_batch(harmon: Harmon) -> None:
    plan = iterations(NUM_CELLS, 4)
    with inference(harmon.model):
        together = sampler(harmon, PROMPTS).run(plan, drawn(PROMPTS, SEEDS))
        for row, (prompt, seed) in enumerate(zip(PROMPTS, SEEDS, strict=True)):
            alone = sampler(harmon, (prompt,)).run(plan, drawn((prompt,), (seed,)))
            # Matrix products of other shapes add in another order; each iteration passes the difference on.
            assert_near(alone[0], together[row])


def test_the_batch_size_changes_no_image(harmon: Harmon) -> None:
    # Pixels are cut to 8 bits, so a difference in the last place of a float may show as one level.
    difference = pixels(harmon, batch_size=4) - pixels(harmon, batch_size=3)
    assert np.abs(difference).max() <= 1


def test_an_image_is_its_prompts_and_seeds(harmon: Harmon) -> None:
    first, _, _, other_seed = images = pixels(harmon)
    assert np.array_equal(images, pixels(harmon))
    assert not np.array_equal(first, other_seed)
    same_seed = pixels(harmon, ("a red circle", "a blue circle"), (0, 0))
    assert not np.array_equal(*same_seed)


@pytest.mark.parametrize("attention", ["paper", "native"])
def test_the_cached_prompt_gives_the_conditions_of_training(harmon: Harmon, attention: Any) -> None:
    prompts = PROMPTS[:2]
    latents = torch.randn(2, 4, 4, CHANNELS, generator=rng())
    visible = visible_indices(masks(2, 11))
    texts = harmon.tokenizer.pad([harmon.tokenizer.caption(text) for text in prompts], device=harmon.device)
    with inference(harmon.model):
        text = harmon.model.llm.model.embed_tokens(texts.ids)
        trained = harmon.model.conditions(text, texts.valid, latents, visible, attention=attention)
        drawing = sampler(harmon, prompts, attention=attention)
        for _ in range(2):
            sampled = drawing.conditions(latents.flatten(1, 2), visible)
            assert drawing.cache.get_seq_length() == texts.ids.shape[1]
            torch.testing.assert_close(sampled, trained, rtol=0, atol=1e-5)


def test_sampling_follows_the_recorded_attention(native: Harmon) -> None:
    causal = pixels(native)
    native.configure(Conditioning(attention="paper"))
    assert not np.array_equal(pixels(native), causal)


class HostReads(TorchDispatchMode):
    """Count what makes the host wait for a device: reads of values, and shapes that depend on values."""

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in self.WAITING:
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


def test_the_sampling_loop_never_waits_for_the_device(harmon: Harmon) -> None:
    with inference(harmon.model):
        drawing = sampler(harmon, (*PROMPTS, *PROMPTS))
        given = drawn(PROMPTS, SEEDS)
        with HostReads() as reads:
            drawing.run(iterations(NUM_CELLS, 4, cfg_scale=3.0), given)
    assert reads.found == []
    with HostReads() as reads:
        torch.ones(2).nonzero()
        torch.ones(1).item()
    assert len(reads.found) == 2


@pytest.mark.parametrize("num_steps", [1, 4, 16, 40])
def test_every_cell_is_revealed_once_however_many_iterations_there_are(harmon: Harmon, num_steps: int) -> None:
    plan = iterations(NUM_CELLS, num_steps)
    assert len(plan) == num_steps
    assert [step.hidden for step in plan[1:]] == [step.remaining for step in plan[:-1]]
    assert (plan[0].hidden, plan[-1].remaining) == (NUM_CELLS, 0)
    with inference(harmon.model):
        latents = sampler(harmon, PROMPTS[:1]).run(plan, drawn(PROMPTS[:1], SEEDS[:1]))
    assert bool((latents != 0).all())


def test_guidance_of_one_is_no_guidance_and_more_moves_away_from_the_empty_prompt(harmon: Harmon) -> None:
    head = harmon.model.mar.diffloss
    conditions = torch.randn(2, 3, CONFIG.mar.decoder_width, generator=rng())
    noise = torch.randn(3, 1 + STEPS, CHANNELS, generator=rng(1))
    with inference(harmon.model):
        times = head.time_table()
        plain = head.sample(conditions[0], noise, times=times)
        same = head.sample(conditions[0].repeat(2, 1), noise, times=times, guidance=3.0)
        moved = head.sample(conditions.flatten(0, 1), noise, times=times, guidance=3.0)
    assert_near(same, plain)
    assert (moved - plain).abs().max() > 1e-2 * plain.abs().max()


def test_temperature_scales_the_steps_noise_and_not_the_start(harmon: Harmon) -> None:
    head = harmon.model.mar.diffloss
    conditions = torch.randn(6, CONFIG.mar.decoder_width, generator=rng())
    noise = torch.randn(3, 1 + STEPS, CHANNELS, generator=rng(1))
    other_steps, other_start = noise.clone(), noise.clone()
    other_steps[:, 1:] = torch.randn(3, STEPS, CHANNELS, generator=rng(2))
    other_start[:, 0] = torch.randn(3, CHANNELS, generator=rng(3))
    with inference(harmon.model):
        times = head.time_table()

        def cells(given: torch.Tensor, temperature: float) -> torch.Tensor:
            return head.sample(conditions, given, times=times, guidance=2.0, temperature=temperature)

        assert torch.equal(cells(noise, 0.0), cells(other_steps, 0.0))
        assert not torch.equal(cells(noise, 0.0), cells(other_start, 0.0))
        assert not torch.equal(cells(noise, 1.0), cells(other_steps, 1.0))
        halved = noise.clone()
        halved[:, 1:] /= 2
        assert_near(cells(noise, 0.5), cells(halved, 1.0))


def test_drawing_and_answering_run_in_bf16(harmon: Harmon) -> None:
    rounded = pixels(harmon, cfg_scale=3.0, options={"precision": "bf16"})
    assert rounded.shape == (4, 16, 16, 3)
    with inference(harmon.model, precision="bf16"):
        question = harmon.tokenizer.question("is it red ?")
        image = harmon.model.whole_image(torch.randn(1, 4, 4, CHANNELS, generator=rng()))
        (tokens,) = answering.greedy(harmon.model, image, [question], end_id=-1, max_new_tokens=3)
    assert len(tokens) == 3


def test_a_wrong_call_is_refused_before_anything_is_drawn(harmon: Harmon) -> None:
    with pytest.raises(ValueError, match="2 seeds"):
        pixels(harmon, PROMPTS[:1], (0, 1))
    with pytest.raises(ValueError, match="speed"):
        harmon.generate(PROMPTS, seeds=SEEDS, settings=GenerationSettings(num_steps=4, options={"speed": 2}))
    with pytest.raises(ValueError, match="iteration"):
        iterations(16, 0)


def test_levels_are_cut_and_not_rounded() -> None:
    values = torch.tensor([-2.0, -1.0, 0.0, 0.5, 1.0, 2.0])
    (image,) = to_images(values.view(1, 1, 1, 6).expand(1, 3, 1, 6))
    assert np.asarray(image)[0, :, 0].tolist() == [0, 0, 128, 191, 255, 255]


def test_answers_in_a_batch_are_those_one_by_one(harmon: Harmon, monkeypatch: pytest.MonkeyPatch) -> None:
    questions = ["is it red ?", "what ?", "is it a big blue circle ?", "what is it ?", "a ?"]
    images = [[picture(seed)] for seed in range(5)]
    together = harmon.answer(images, questions, max_new_tokens=6)
    choices = harmon.choice_logprobs(images, questions, [["yes", "no"]] * 5)
    monkeypatch.setattr("segros_train.backbones.common.answering.BATCH_SIZE", 1)
    assert harmon.answer(images, questions, max_new_tokens=6) == together
    assert len(set(together)) > 1
    for one, many in zip(harmon.choice_logprobs(images, questions, [["yes", "no"]] * 5), choices, strict=True):
        assert one == pytest.approx(many, abs=1e-5)


def test_an_answer_is_the_greedy_continuation_read_anew_for_each_token(harmon: Harmon) -> None:
    question = harmon.tokenizer.question("is it red ?")
    with inference(harmon.model):
        image = harmon.model.whole_image(torch.randn(1, 4, 4, CHANNELS, generator=rng()))
        (measured,) = answering.greedy(harmon.model, image, [question], end_id=-1, max_new_tokens=5)
        tail = list(question.tail)
        for _ in range(5):
            states = answering.read(harmon.model, image, [type(question)(question.head, tuple(tail))])
            tail.append(int(harmon.model.llm.lm_head(states[0, -1]).argmax()))
    assert measured == tail[-5:]


def test_an_answer_ends_where_its_turn_does(harmon: Harmon) -> None:
    question = harmon.tokenizer.question("is it red ?")
    with inference(harmon.model):
        image = harmon.model.whole_image(torch.randn(1, 4, 4, CHANNELS, generator=rng()))
        (tokens,) = answering.greedy(harmon.model, image, [question], end_id=-1, max_new_tokens=6)
        end = tokens[-1]
        (cut,) = answering.greedy(harmon.model, image, [question], end_id=end, max_new_tokens=6)
    assert cut == tokens[: tokens.index(end)]


def test_choices_are_scored_by_their_first_token_as_a_distribution(harmon: Harmon) -> None:
    (scores,) = harmon.choice_logprobs([[picture(0)]], ["what ?"], [["red circle", "red", "blue"]])
    assert scores[0] == scores[1] != scores[2]
    assert all(score < 0 for score in scores)


@pytest.mark.parametrize("count", [0, 2])
def test_a_question_about_any_other_number_of_images_is_refused(harmon: Harmon, count: int) -> None:
    images = [[picture(0)] * count]
    with pytest.raises(ValueError, match="one image"):
        harmon.answer(images, ["what ?"], max_new_tokens=1)
    with pytest.raises(ValueError, match="one image"):
        harmon.choice_logprobs(images, ["what ?"], [["yes"]])


def test_a_drawing_crop_is_a_random_square_of_the_image(harmon: Harmon) -> None:
    transform = pickle.loads(pickle.dumps(harmon.image_transform("generation")))
    image = picture(0, width=40, height=16)
    first, again, other = (transform(image, rng(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    levels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255 * 2 - 1
    assert any(torch.allclose(levels[:, :, left : left + 16], first) for left in range(25))


def test_an_image_to_understand_is_centred_on_grey(harmon: Harmon) -> None:
    transform = pickle.loads(pickle.dumps(harmon.image_transform("understanding")))
    seen = transform(picture(0, width=16, height=6), rng())
    assert seen.shape == (3, 16, 16)
    assert torch.allclose(seen[:, :5], torch.tensor(127 / 255 * 2 - 1))
    assert torch.allclose(seen[:, 11:], torch.tensor(127 / 255 * 2 - 1))
    levels = torch.from_numpy(np.array(picture(0, width=16, height=6))).permute(2, 0, 1).float() / 255 * 2 - 1
    torch.testing.assert_close(seen[:, 5:11], levels)
