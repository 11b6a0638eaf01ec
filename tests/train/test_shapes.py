"""The embedded world: deterministic, legible, and in the benchmark's own grammar."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from segros_train.data.shapes.captions import NUMBERS, caption, caption_question, geneval_metadata, question
from segros_train.data.shapes.sets import (
    GenerationSet,
    InstructionSet,
)
from segros_train.data.shapes.world import (
    CELL_PX,
    COLORS,
    GRID,
    IMAGE_PX,
    OBJECT_NAMES,
    RELATIONS,
    TAGS,
    direction,
    matching_crowd,
    render,
    sample_scene,
    spread_scene,
)


def test_the_same_seed_and_index_give_the_same_scene_image_caption_and_question() -> None:
    for index in range(50):
        first, again = GenerationSet(3)[index], GenerationSet(3)[index]
        assert first.caption == again.caption
        assert first.image.tobytes() == again.image.tobytes()
        assert InstructionSet(3)[index].dialogue == InstructionSet(3)[index].dialogue


def test_an_index_does_not_depend_on_the_indices_read_before() -> None:
    late = GenerationSet(0)[17].image.tobytes()
    assert [GenerationSet(0)[i] for i in range(18)][17].image.tobytes() == late


def test_seeds_and_indices_give_different_images() -> None:
    images = {GenerationSet(seed)[index].image.tobytes() for seed in range(3) for index in range(100)}
    assert len(images) == 300


def test_objects_lie_within_their_cell_and_never_in_neighbouring_cells() -> None:
    for index in range(500):
        things = sample_scene(5, index).objects
        for thing in things:
            assert 0 <= thing.row < GRID and 0 <= thing.column < GRID
            assert all(1 <= start and start + thing.size_px < CELL_PX for start in thing.offset_px)
        cells = [(thing.row, thing.column) for thing in things]
        for i, a in enumerate(cells):
            assert all(max(abs(a[0] - b[0]), abs(a[1] - b[1])) >= 2 for b in cells[:i])


@pytest.mark.parametrize("tag", TAGS)
def test_every_tag_gets_scenes_that_its_caption_describes(tag: str) -> None:
    for index in range(60):
        scene = sample_scene(9, index, tag=tag)
        words = caption(scene)
        assert words.startswith("a photo of ")
        assert scene.objects[0].shape in words
        if tag in ("colors", "color_attr"):
            assert all(thing.color in words for thing in scene.objects)
        if tag == "counting":
            assert NUMBERS[len(scene.objects)] in words
        if tag == "position":
            assert direction(*scene.objects) == scene.relation
            assert f"{scene.objects[0].shape} {scene.relation} " in words


def test_training_scenes_cover_every_tag_shape_colour_and_cell() -> None:
    scenes = [sample_scene(1, index) for index in range(2000)]
    things = [thing for scene in scenes for thing in scene.objects]
    assert {scene.tag for scene in scenes} == set(TAGS)
    assert {thing.shape for thing in things} == set(OBJECT_NAMES)
    assert {thing.color for thing in things} == set(COLORS)
    assert len({(thing.row, thing.column) for thing in things}) == GRID * GRID


def test_yes_and_no_are_asked_equally_often_and_every_letter_is_an_answer() -> None:
    answers = Counter(InstructionSet(2)[index].dialogue[0].answer for index in range(3000))
    assert abs(answers["Yes"] / (answers["Yes"] + answers["No"]) - 0.5) < 0.05
    letters = [answers[letter] for letter in "ABCD"]
    assert min(letters) > 0.8 * max(letters)
    assert set(COLORS) < set(answers) and set(NUMBERS.values()) < set(answers)


def test_the_answer_to_a_question_is_true_of_the_scene() -> None:
    checked = Counter()
    for index in range(1500):
        scene = sample_scene(4, index)
        turn = question(scene, np.random.default_rng(index))
        pairs = {f"{thing.color} {thing.shape}" for thing in scene.objects}
        shapes = {thing.shape for thing in scene.objects}
        if turn.question.startswith("Is there a") and " in the " in turn.question:
            named = turn.question.split(" in the ")[0].removeprefix("Is there an ").removeprefix("Is there a ")
            truth = named in (pairs if " " in named else shapes)
            assert turn.answer == ("Yes" if truth else "No"), (turn, scene)
            checked["is there"] += 1
        if turn.question.startswith("What color") and "A. " not in turn.question:
            shape = turn.question.split("\n")[0].removeprefix("What color is the ").rstrip("?")
            assert f"{turn.answer} {shape}" in pairs
            checked["color"] += 1
        if turn.question.startswith("How many") and "A. " not in turn.question:
            assert any(NUMBERS[sum(t.shape == s for t in scene.objects)] == turn.answer for s in shapes)
            checked["count"] += 1
    assert min(checked.values()) > 30 and len(checked) == 3


def test_evaluation_prompts_are_distinct_and_follow_the_official_schema() -> None:
    records = geneval_metadata(20)
    assert len({record["prompt"] for record in records}) == len(records)
    assert {record["tag"] for record in records} == set(TAGS)
    for record in records:
        assert {clause["class"] for clause in record["include"]} <= set(OBJECT_NAMES)
        assert ("exclude" in record) == (record["tag"] == "counting")
        for clause in record["include"]:
            assert set(clause) <= {"class", "count", "color", "position"}
    position = next(record for record in records if record["tag"] == "position")
    assert position["include"][1]["position"][1] == 0
    assert position["prompt"].split()[4] == position["include"][1]["class"]


def test_images_have_the_documented_size_and_mode() -> None:
    image = render(sample_scene(0, 0))
    assert image.size == (IMAGE_PX, IMAGE_PX) and image.mode == "RGB"


def test_a_spread_scene_repeats_the_objects_of_its_scene_in_half_of_the_cells() -> None:
    for index in range(200):
        scene = sample_scene(7, index)
        spread = spread_scene(scene, 7)
        assert 10 <= len(spread.objects) <= 25
        assert {(thing.shape, thing.color) for thing in spread.objects} <= {(t.shape, t.color) for t in scene.objects}


def test_a_spread_scene_keeps_each_object_on_the_side_its_relation_says() -> None:
    seen = set()
    for index in range(200):
        scene = sample_scene(3, index, tag="position")
        spread = spread_scene(scene, 3)
        first, second = ([t for t in spread.objects if t.shape == named.shape] for named in scene.objects)
        for near in first:
            for far in second:
                ahead = {
                    "left of": near.column < far.column,
                    "right of": near.column > far.column,
                    "above": near.row < far.row,
                    "below": near.row > far.row,
                }
                assert scene.relation is not None and ahead[scene.relation]
        seen.add(scene.relation)
    assert seen == set(RELATIONS)


def test_a_crowd_is_of_one_shape_and_colour_and_its_caption_says_which() -> None:
    for index in range(100):
        things = matching_crowd(7, index).objects
        assert 10 <= len(things) <= 25
        (shape,), (color,) = {thing.shape for thing in things}, {thing.color for thing in things}
        assert caption(matching_crowd(7, index)).startswith(f"a photo of many {color} {shape}")


def test_a_question_about_a_caption_is_answered_by_the_caption() -> None:
    asked: Counter[str] = Counter()
    for index in range(400):
        scene = sample_scene(11, index)
        words = caption(scene).replace("crosses", "cross")
        turn = caption_question(scene, np.random.default_rng(index))
        kind = turn.question.split()[0]
        asked[kind] += 1
        if kind == "What":
            thing = next(o for o in scene.objects if turn.answer in (o.shape, o.color))
            assert f"{thing.color} {thing.shape}" in words
        elif kind == "How":
            assert turn.answer in words and scene.tag == "counting"
        elif " in the image" in turn.question:
            shape = turn.question.removesuffix(" in the image?").split()[-1]
            assert (shape in words) == (turn.answer == "Yes")
        else:
            shape, *relation, _, other = turn.question.removesuffix("?").split()[2:]
            first = next(o for o in scene.objects if o.shape == shape)
            second = next(o for o in scene.objects if o.shape == other)
            assert (direction(first, second) == " ".join(relation)) == (turn.answer == "Yes")
    assert set(asked) == {"What", "How", "Is"}
