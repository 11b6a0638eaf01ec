"""Show-o's drawing and answering: alike alone and in a batch, with and without cached prompts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from showo_tiny import CODES_ONLY, CONFIG, NUM_CELLS, picture, rng, tiny_showo

from segros_train.backbones.common.modes import inference
from segros_train.backbones.showo.adapter import Showo
from segros_train.backbones.showo.sampling import Iteration, Sampler, item_noise, iterations, step, to_images
from segros_train.types import GenerationSettings

PROMPTS = ("a red circle", "a big blue square .", "a green circle", "a red circle")
SEEDS = (0, 1, 2, 3)
QUESTIONS = ("is it red ?", "what is it ? A . red B . blue")
CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=["tower", "codes"])
def showo(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Showo:
    folder = tmp_path_factory.mktemp("showo")
    return tiny_showo(folder, CONFIG if request.param == "tower" else CODES_ONLY)


def pixels(showo: Showo, prompts: tuple[str, ...] = PROMPTS, seeds: tuple[int, ...] = SEEDS, **settings: Any) -> Any:
    images = showo.generate(prompts, seeds=seeds, settings=GenerationSettings(num_steps=4, **settings))
    return np.stack([np.asarray(image) for image in images]).astype(int)


def test_the_batch_size_changes_no_image(showo: Showo) -> None:
    assert np.abs(pixels(showo, batch_size=4) - pixels(showo, batch_size=3)).max() <= 1
    assert np.abs(pixels(showo, batch_size=4) - pixels(showo, batch_size=1)).max() <= 1


def test_an_image_is_its_prompt_and_seed(showo: Showo) -> None:
    first, _, _, other_seed = images = pixels(showo)
    assert np.array_equal(images, pixels(showo))
    assert not np.array_equal(first, other_seed)
    assert not np.array_equal(*pixels(showo, ("a red circle", "a blue circle"), (0, 0)))


@pytest.mark.parametrize("cfg_scale", [1.0, 3.5])
def test_cached_prompts_draw_what_uncached_ones_draw(showo: Showo, cfg_scale: float) -> None:
    cached, uncached = (pixels(showo, cfg_scale=cfg_scale, options={"prompt_cache": cache}) for cache in (True, False))
    assert np.abs(cached - uncached).max() <= 1


def test_cached_logits_equal_uncached_ones_through_all_iterations(showo: Showo) -> None:
    special = showo.tokenizer.special
    texts = [showo.tokenizer.request(prompt, limit=13) for prompt in (*PROMPTS[:2], "", "")]
    noise = item_noise(PROMPTS[:2], SEEDS[:2], shape=(NUM_CELLS, 16), device=CPU)
    with inference(showo.model):
        both = [
            Sampler(
                showo.model,
                texts,
                range(4),
                pad_id=special["pad"],
                borders=(special["soi"], special["eoi"]),
                use_cache=cache,
            )
            for cache in (True, False)
        ]
        cells = torch.full((2, NUM_CELLS), -1)
        for number, iteration in enumerate(iterations(NUM_CELLS, 5)):
            first, second = (sampler.logits(cells, guidance=2.0) for sampler in both)
            torch.testing.assert_close(first, second, rtol=0, atol=1e-4)
            exponential, uniform = noise(number)
            done = step(first, cells, iteration, exponential=exponential, uniform=uniform)
            cells = done.codes.masked_fill(done.hidden_again, -1)


def test_known_cells_are_kept_and_a_full_image_stays_as_it_is() -> None:
    logits, known = torch.zeros(1, 4, 3), torch.tensor([[2, 1, 0, 2]])
    noise = {"exponential": torch.ones(1, 4, 3), "uniform": torch.full((1, 4), 0.5)}
    done = step(logits, known, Iteration(2, 1.0), **noise)
    assert torch.equal(done.codes, known)
    partly = torch.tensor([[2, -1, -1, 2]])
    done = step(logits, partly, Iteration(3, 0.0), **noise)
    assert torch.equal(done.codes[0, [0, 3]], partly[0, [0, 3]])
    assert not bool(done.hidden_again[0, [0, 3]].any())


def test_fewer_cells_are_hidden_after_every_iteration() -> None:
    hidden = [iteration.hidden for iteration in iterations(64, 12)]
    assert hidden == sorted(hidden, reverse=True)
    temperatures = [iteration.temperature for iteration in iterations(64, 12)]
    assert temperatures[-1] == 0.0 and temperatures == sorted(temperatures, reverse=True)
    with pytest.raises(ValueError, match="at least one iteration"):
        iterations(64, 0)


def test_noise_belongs_to_prompt_and_seed_whatever_stands_beside_it() -> None:
    shape = (NUM_CELLS, 16)
    together = item_noise(PROMPTS, SEEDS, shape=shape, device=CPU)
    alone = item_noise(PROMPTS[2:3], SEEDS[2:3], shape=shape, device=CPU)
    for number in range(2):
        assert all(torch.equal(a[2], b[0]) for a, b in zip(together(number), alone(number), strict=True))


def test_wrong_requests_for_images_are_refused(showo: Showo) -> None:
    with pytest.raises(ValueError, match="2 prompts with 1 seeds"):
        showo.generate(("a", "b"), seeds=(0,), settings=GenerationSettings(num_steps=2))
    with pytest.raises(ValueError, match="unknown options"):
        showo.generate(("a",), seeds=(0,), settings=GenerationSettings(num_steps=2, options={"top_k": 3}))
    with pytest.raises(ValueError, match="constant"):
        showo.generate(("a",), seeds=(0,), settings=GenerationSettings(num_steps=2, cfg_schedule="linear"))


def test_pixels_are_cut_and_not_rounded() -> None:
    levels = np.asarray(to_images(torch.tensor([0.999, -3.0, 3.0]).view(1, 3, 1, 1))[0])
    assert levels.tolist() == [[[254, 0, 255]]]


def test_questions_of_different_lengths_are_answered_alone_as_together(showo: Showo) -> None:
    images = [[picture(0)], [picture(1, 20, 14)]]
    together = showo.answer(images, QUESTIONS, max_new_tokens=5)
    alone = [showo.answer([image], [text], max_new_tokens=5)[0] for image, text in zip(images, QUESTIONS, strict=True)]
    assert together == alone
    scored = showo.choice_logprobs(images, QUESTIONS, (("yes", "no"), ("A", "B")))
    apart = [
        showo.choice_logprobs([image], [text], [choices])[0]
        for image, text, choices in zip(images, QUESTIONS, (("yes", "no"), ("A", "B")), strict=True)
    ]
    np.testing.assert_allclose(np.array(scored), np.array(apart), atol=1e-4)


def test_a_choice_is_scored_by_the_model_that_answers(showo: Showo) -> None:
    """The first answered word is the best of all words: its score tops that of every other word."""
    image, words = [[picture(3)]], ("yes", "no", "red", "blue", "A", "B", "big", "square")
    (scores,) = showo.choice_logprobs(image, QUESTIONS[:1], [words])
    (answered,) = showo.answer(image, QUESTIONS[:1], max_new_tokens=1)
    if answered in words:
        assert max(scores) == scores[words.index(answered)]
    assert all(score < 0 for score in scores)


def test_wrong_questions_are_refused(showo: Showo) -> None:
    with pytest.raises(ValueError, match="one image per question"):
        showo.answer([[picture(0), picture(1)]], QUESTIONS[:1], max_new_tokens=3)
    with pytest.raises(ValueError, match="at least one token"):
        showo.answer([[picture(0)]], QUESTIONS[:1], max_new_tokens=0)
    with pytest.raises(ValueError, match="no token to score"):
        showo.choice_logprobs([[picture(0)]], QUESTIONS[:1], [(" ",)])


def test_images_are_prepared_in_the_size_their_reader_wants(showo: Showo) -> None:
    wide = picture(5, 40, 20)
    assert showo.image_transform("generation")(wide, rng()).shape == (3, 16, 16)
    side = 24 if showo.has_tower else 16
    assert showo.image_transform("understanding")(wide, rng()).shape == (3, side, side)


def test_captions_keep_their_tokens_and_lose_what_is_cut(showo: Showo) -> None:
    assert showo.caption_tokens("a red circle") == ["a", "red", "circle"]
    long = " ".join(["red"] * 40)
    assert len(showo.caption_tokens(long)) == len(showo.tokenizer.request(long, limit=13)) - 3
