"""Question sets of the embedded world: true, balanced, the same every time, and asked as training asks."""

from __future__ import annotations

import re
from collections import Counter, defaultdict

import numpy as np
import pytest

from pretraining.scenes import SCENES_SEED
from segros_eval.shapes.reader import read_scene
from segros_train.data.shapes.captions import LETTER, NUMBERS, WORD, question
from segros_train.data.shapes.questions import QUESTIONS_SEED, SETS, ShapesQuestion
from segros_train.data.shapes.world import COLORS, OBJECT_NAMES, RELATIONS, render, sample_scene

SIZES = {"mme": 25, "pope": 25, "gqa": 60, "mmmu": 30, "seed": 60}
WORDS = {
    word: kind for kind, words in {"SHAPE": OBJECT_NAMES, "COLOR": COLORS, "WAY": RELATIONS}.items() for word in words
}
WORDS |= dict.fromkeys(NUMBERS.values(), "NUMBER")
ANY = re.compile(r"\b(" + "|".join(sorted(WORDS, key=len, reverse=True)) + r")(e?s)?\b")


def form(text: str) -> str:
    """Return a question with its words replaced by their kinds."""
    shown = ANY.sub(lambda found: WORDS[found[1]] + ("s" if found[2] else ""), text)
    return re.sub(r"\ban? (?=SHAPE|COLOR)", "a ", shown)


def asked(name: str) -> list[ShapesQuestion]:
    return list(SETS[name](SIZES[name]))


def text_of(one: ShapesQuestion) -> str:
    return re.sub(r"<image \d> ", "", str(one.record["question"])).removesuffix(" Please answer yes or no.")


@pytest.fixture(scope="module")
def trained() -> set[str]:
    scenes = ((index, sample_scene(3, index)) for index in range(4000))
    texts = (question(scene, np.random.default_rng((3, index, 1))).question for index, scene in scenes)
    return {form(text.split("\n")[0].removesuffix(" Please answer yes or no.")) for text in texts}


@pytest.mark.parametrize("name", SETS)
def test_every_question_has_a_form_that_training_asks(name: str, trained: set[str]) -> None:
    assert {form(text_of(one)) for one in asked(name)} <= trained
    assert WORD and LETTER


@pytest.mark.parametrize("name", SETS)
def test_a_set_is_the_same_every_time_and_a_larger_one_starts_alike(name: str) -> None:
    ids = [one.item_id for one in asked(name)]
    assert asked(name) == asked(name) and len(set(ids)) == len(ids)
    if name != "pope":  # What is popular depends on the whole set.
        larger = {one.item_id: one for one in SETS[name](SIZES[name] + 5)}
        assert all(larger[one.item_id] == one for one in asked(name))


def test_the_scenes_are_none_that_training_shows() -> None:
    assert QUESTIONS_SEED not in (0, 1, 2, SCENES_SEED)


@pytest.mark.parametrize("name", ["mme", "pope", "gqa", "mmmu"])
def test_yes_and_no_are_right_equally_often(name: str) -> None:
    answers = Counter(str(one.record["answer"]).lower() for one in asked(name))
    assert answers["yes"] == answers["no"] > 0


def test_every_letter_is_right_equally_often_in_every_dimension() -> None:
    counts = Counter((one.record["question_type_id"], one.record["answer"]) for one in asked("seed"))
    assert set(counts.values()) == {SIZES["seed"] // 4} and len(counts) == 12


def test_each_split_of_pope_asks_four_questions_about_each_picture_two_of_them_right_by_yes() -> None:
    pictures: dict[tuple[str, str], list[str]] = defaultdict(list)
    for one in asked("pope"):
        pictures[one.record["category"], one.record["image_source"]].append(one.record["answer"])
    assert set(map(tuple, pictures.values())) == {("yes", "yes", "no", "no")}
    assert len(pictures) == 3 * SIZES["pope"]


def seen(one: ShapesQuestion) -> list[tuple[str, str]]:
    """Return colour and shape of everything that the reader finds in a question's pictures."""
    pictures = [render(sample_scene(*scene)) for scene in one.scenes]
    return [(found.color, found.shape) for picture in pictures for found in read_scene(picture)]


def truth(one: ShapesQuestion) -> str | None:
    """Answer a question by reading its pictures; None for a question about places."""
    text, things = text_of(one), seen(one)
    words = [found[1] for found in ANY.finditer(text)]
    if text.startswith("Is there one ") or text.startswith("Are there"):
        return "yes" if NUMBERS[sum(shape == words[1] for _, shape in things)] == words[0] else "no"
    if text.startswith("Is there"):
        named = [thing for thing in things if thing[1] == words[-1] and (len(words) == 1 or thing[0] == words[0])]
        return "yes" if named else "no"
    if text.startswith("How many"):
        return NUMBERS[sum(shape == words[0] for _, shape in things)]
    if text.startswith("What color"):
        return next(color for color, shape in things if shape == words[0])
    if text.startswith("What is"):
        return next(shape for color, shape in things if color == words[0])
    return None


@pytest.mark.parametrize("name", SETS)
def test_the_right_answer_is_what_the_reader_of_the_world_sees(name: str) -> None:
    checked = []
    for one in asked(name):
        answer = str(one.record["answer"])
        options = [one.record.get(f"choice_{letter}") for letter in "abcd"]
        if one.record.get("question_type") == "multiple-choice":
            options = re.findall(r"'(\w+)'", one.record["options"])
        if options[0] is not None and answer in "ABCD":
            answer = str(options["ABCD".index(answer)])
        found = truth(one)
        if "Which object" in text_of(one):
            shapes = {shape for _, shape in seen(one)}
            checked.append(answer in shapes and sum(option in shapes for option in options) == 1)
        elif found is not None:
            checked.append(found == answer.lower())
    assert len(checked) > 40 and np.mean(checked) >= 0.99
