"""OpenUni's prompts: templates, truncation, where the caption stands; tiles of images."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from openuni_tiny import picture, rng
from tokenizers import Tokenizer

from pretraining.openuni_parts import build_tokenizer
from segros_train.backbones.openuni.adapter import ResizeToSquare
from segros_train.backbones.openuni.answering import tiles
from segros_train.backbones.openuni.prompts import SYSTEM, OpenUniTokenizer
from segros_train.errors import PrerequisiteError


@pytest.fixture(scope="module")
def tokenizer() -> OpenUniTokenizer:
    return OpenUniTokenizer(build_tokenizer(vocab_size=420))


LONG = "a photo of " + "a red circle and " * 40


def decoded(tokenizer: OpenUniTokenizer, ids: tuple[int, ...]) -> str:
    return tokenizer.tokenizer.decode(list(ids), skip_special_tokens=False)


def test_a_long_caption_loses_its_own_end_and_keeps_the_template(tokenizer: OpenUniTokenizer) -> None:
    whole = decoded(tokenizer, tokenizer.caption(LONG).ids)
    cut = tokenizer.caption(LONG, limit=60)
    assert len(cut.ids) == 60
    text = decoded(tokenizer, cut.ids)
    assert text.endswith("<|im_end|>\n<|im_start|>assistant\n<img>")
    assert whole.startswith(text.removesuffix("<|im_end|>\n<|im_start|>assistant\n<img>"))


def test_upstreams_truncation_loses_the_end_of_the_template(tokenizer: OpenUniTokenizer) -> None:
    whole = tokenizer.caption(LONG).ids
    assert tokenizer.caption(LONG, limit=60, truncation="upstream").ids == whole[:60]


@pytest.mark.parametrize("truncation", ["caption", "upstream"])
def test_a_caption_within_the_limit_is_left_alone(tokenizer: OpenUniTokenizer, truncation: str) -> None:
    whole = tokenizer.caption("a red circle")
    assert tokenizer.caption("a red circle", limit=len(whole.ids), truncation=truncation) == whole


@given(text=st.text(max_size=60))
def test_the_marked_tokens_are_those_of_the_caption(tokenizer: OpenUniTokenizer, text: str) -> None:
    tokens = tokenizer.caption_tokens(text)
    prompt = tokenizer.caption(text)
    assert sum(prompt.caption) == len(tokens)
    special = {token.content for token in tokenizer.tokenizer.get_added_tokens_decoder().values()}
    if not any(token in text for token in special) and text.isascii():
        assert "".join(tokens) == text.strip()


def test_a_special_token_in_a_caption_is_no_caption_token(tokenizer: OpenUniTokenizer) -> None:
    assert "<img>" not in tokenizer.caption_tokens("a <img> circle")


def test_captions_in_other_scripts_keep_their_tokens(tokenizer: OpenUniTokenizer) -> None:
    prompt = tokenizer.caption("ein schöner Kreis, 赤い丸")
    marked = [index for index, is_caption in zip(prompt.ids, prompt.caption, strict=True) if is_caption]
    assert "schöner Kreis, 赤い丸" in decoded(tokenizer, tuple(marked))


def test_outer_blanks_of_a_caption_are_dropped(tokenizer: OpenUniTokenizer) -> None:
    assert tokenizer.caption("  a red circle \n") == tokenizer.caption("a red circle")


def test_a_request_beyond_the_limit_loses_its_start(tokenizer: OpenUniTokenizer) -> None:
    whole = tokenizer.request("Describe it.", num_hints=30)
    assert tokenizer.request("Describe it.", num_hints=30, limit=20).ids == whole.ids[-20:]


def test_a_question_follows_the_system_message_and_its_images(tokenizer: OpenUniTokenizer) -> None:
    text = decoded(tokenizer, tokenizer.question("What is it?", num_image_tokens=[2, 1]).ids)
    images = "<img><IMG_CONTEXT><IMG_CONTEXT></img>\n<img><IMG_CONTEXT></img>\n"
    expected = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n{images}What is it?<|im_end|>\n"
    assert text == expected + "<|im_start|>assistant\n"


def test_a_tokenizer_without_the_image_tokens_is_refused(tmp_path: Path) -> None:
    foreign = Tokenizer.from_str(build_tokenizer(vocab_size=300).to_str().replace("<IMG_CONTEXT>", "<other>"))
    with pytest.raises(PrerequisiteError, match="<IMG_CONTEXT>"):
        OpenUniTokenizer(foreign)
    path = tmp_path / "tokenizer.json"
    path.write_text("{}", encoding="utf-8")
    with pytest.raises(PrerequisiteError, match="no tokenizer"):
        OpenUniTokenizer.from_file(path)


@pytest.mark.parametrize(
    ("width", "height", "count"),
    [(448, 448, 1), (896, 448, 2), (448, 1344, 3), (2000, 2000, 9), (30, 20, 6), (1344, 896, 6)],
)
def test_an_image_is_cut_into_the_tiles_its_shape_asks_for(width: int, height: int, count: int) -> None:
    cut = tiles(picture(0, width, height), size_px=448, max_tiles=12)
    assert len(cut) == (1 if count == 1 else count + 1)
    assert all(tile.shape == (3, 448, 448) for tile in cut)


def test_the_last_of_several_tiles_is_the_whole_image() -> None:
    image = picture(1, 96, 48)
    whole = ResizeToSquare(48)(image, rng())
    cut = tiles(image, size_px=48, max_tiles=4)
    assert len(cut) == 3
    assert torch.equal(cut[-1], whole)
    left = ResizeToSquare(48)(image.crop((0, 0, 48, 48)), rng())
    assert torch.equal(cut[0], left)


def test_one_tile_takes_the_image_as_a_whole() -> None:
    (tile,) = tiles(picture(1, 96, 48), size_px=48, max_tiles=1)
    assert torch.equal(tile, ResizeToSquare(48)(picture(1, 96, 48), rng()))
