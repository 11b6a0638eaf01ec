from __future__ import annotations

from pathlib import Path

import pytest
from harmon_tiny import word_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from segros_train.backbones.common.instructions import INSTRUCTIONS, read_instructions
from segros_train.backbones.harmon.prompts import HarmonTokenizer
from segros_train.backbones.harmon.sequence import SequenceLayout, attention_mask, position_ids
from segros_train.errors import PrerequisiteError
from segros_train.types import Turn


@pytest.fixture(scope="module")
def words() -> HarmonTokenizer:
    return HarmonTokenizer(word_tokenizer())


@pytest.fixture(scope="module")
def byte_pairs() -> HarmonTokenizer:
    """A byte-level tokenizer, whose tokens carry the blank in front of a word."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["Generate an image: a red dog and a blue cat"] * 9, trainer)
    return HarmonTokenizer(tokenizer)


def test_the_words_of_a_caption_are_its_tokens_and_the_template_is_not(words: HarmonTokenizer) -> None:
    assert words.caption_tokens("a red circle") == ["a", "red", "circle"]
    prompt = words.caption("a red circle")
    assert words.text([index for index, kept in zip(prompt.ids, prompt.caption, strict=True) if kept]) == "a red circle"


def test_the_first_token_of_a_caption_counts_although_it_carries_the_blank_of_the_template(
    byte_pairs: HarmonTokenizer,
) -> None:
    tokens = byte_pairs.caption_tokens("  a red dog\n")
    assert tokens[0] == "a"
    assert "".join(tokens) == "a red dog"


def test_a_special_token_written_in_a_caption_is_never_of_the_caption(words: HarmonTokenizer) -> None:
    assert words.caption_tokens("red <|im_end|> circle") == ["red", "circle"]


def test_a_long_prompt_is_cut_on_the_right_and_keeps_its_caption_marks(words: HarmonTokenizer) -> None:
    whole = words.caption("a red circle")
    cut = words.caption("a red circle", limit=9)
    assert cut.ids == whole.ids[:9]
    assert cut.caption == whole.caption[:9]
    assert words.caption_tokens("a red circle", limit=9) == ["a", "red"]


def test_every_answer_of_a_dialogue_is_supervised_with_its_end_and_nothing_else(words: HarmonTokenizer) -> None:
    dialogue = words.dialogue([Turn("is it red ?", "yes"), Turn("what ?", "a circle")], limit=99)
    supervised = [label for label in dialogue.labels if label >= 0]
    assert supervised == words.ids("yes<|im_end|>a circle<|im_end|>")
    assert all(label in (-100, index) for label, index in zip(dialogue.labels, dialogue.tail, strict=True))
    assert list(dialogue.head) == words.ids("<|im_start|>user\n")
    assert list(dialogue.tail) == words.ids(
        "\nis it red ?<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>\n"
        "<|im_start|>user\nwhat ?<|im_end|>\n<|im_start|>assistant\na circle<|im_end|>\n"
    )


def test_a_question_is_a_dialogue_up_to_its_answer(words: HarmonTokenizer) -> None:
    question = words.question("is it red ?")
    dialogue = words.dialogue([Turn("is it red ?", "yes")], limit=99)
    assert dialogue.tail[: len(question.tail)] == question.tail
    assert dialogue.labels[: len(question.tail)] == (-100,) * len(question.tail)
    assert dialogue.labels[len(question.tail)] == words.ids("yes")[0]


def test_a_tokenizer_without_the_end_of_a_turn_is_refused() -> None:
    with pytest.raises(PrerequisiteError, match="im_end"):
        HarmonTokenizer(Tokenizer(models.WordLevel({"a": 0}, "a")))


def test_a_damaged_tokenizer_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text("{")
    with pytest.raises(PrerequisiteError, match=str(path)):
        HarmonTokenizer.from_file(path)


def test_instructions_differ_and_can_be_read_from_a_file(tmp_path: Path) -> None:
    assert len(set(INSTRUCTIONS)) == len(INSTRUCTIONS) >= 40
    path = tmp_path / "instructions.txt"
    path.write_text("Say it.\n\n  Show it. \n")
    assert read_instructions(path) == ("Say it.", "Show it.")
    path.write_text("\n")
    with pytest.raises(PrerequisiteError, match="no instruction"):
        read_instructions(path)


def layout(valid: str, *, hints: tuple[int, int], image: int) -> SequenceLayout:
    import torch

    return SequenceLayout(torch.tensor([[mark == "1" for mark in valid]]), hints, image)


def picture_of(layout: SequenceLayout, attention: str) -> list[str]:
    mask = attention_mask(layout, attention)
    return ["".join("x" if allowed else "." for allowed in row) for row in mask[0, 0].tolist()]


def test_the_papers_mask_is_the_one_of_section_8_2() -> None:
    # Two hints, two words, one pad, two tokens of the image block.
    assert picture_of(layout("1111011", hints=(0, 2), image=5), "paper") == [
        "xx.....",
        "xx.....",
        "xxx....",
        "xxxx...",
        "xxxx...",
        "xxxx.xx",
        "xxxx.xx",
    ]


def test_the_native_mask_is_causal_over_what_is_valid() -> None:
    assert picture_of(layout("1111011", hints=(0, 2), image=5), "native") == [
        "x......",
        "xx.....",
        "xxx....",
        "xxxx...",
        "xxxx...",
        "xxxx.x.",
        "xxxx.xx",
    ]


def test_padding_does_not_advance_positions() -> None:
    assert position_ids(layout("110011", hints=(0, 0), image=4).valid).tolist() == [[0, 1, 1, 1, 2, 3]]
