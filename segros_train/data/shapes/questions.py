"""Question sets about scenes of the embedded world, in the schemas of MME, POPE, GQA, MMMU and SEED-Bench.

The questions are of the kinds, the wording and the forms that `shapes_language` trains on, about scenes of a seed that
no training uses. Right answers come from the scene itself. A set is the same whatever the seed of a run; a larger one
starts with the smaller.

Sources of the schemas: the hub's lmms-lab/MME, lmms-lab/POPE, lmms-lab/GQA, lmms-lab/MMMU and lmms-lab/SEED-Bench.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count, islice, product
from typing import Any

import numpy as np

from segros_train.data.shapes.captions import NUMBERS
from segros_train.data.shapes.world import COLORS, OBJECT_NAMES, RELATIONS, Scene, direction, sample_scene

__all__ = ["QUESTIONS_SEED", "SETS", "ShapesQuestion"]

QUESTIONS_SEED = 6173
"""Seed of the scenes; training sets have others."""

_YES_NO = " Please answer yes or no."


@dataclass(frozen=True)
class ShapesQuestion:
    """A question about scenes.

    Attributes:
        item_id: Name in its set.
        record: The benchmark's own fields, without the picture.
        scenes: Seed and index of each scene it is about.
    """

    item_id: str
    record: Mapping[str, Any]
    scenes: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class _Pictured:
    """A scene with its index and a generator of its own."""

    index: int
    scene: Scene
    rng: np.random.Generator

    @property
    def name(self) -> str:
        return f"scene_{self.index:06d}"

    @property
    def scenes(self) -> tuple[tuple[int, int], ...]:
        return ((QUESTIONS_SEED, self.index),)

    def pick(self, options: Any) -> Any:
        return options[int(self.rng.integers(len(options)))]


def _pictured(wanted: Callable[[Scene], bool] | None = None) -> Iterator[_Pictured]:
    """Yield scenes of a kind, without end."""
    for index in count():
        scene = sample_scene(QUESTIONS_SEED, index)
        if wanted is None or wanted(scene):
            yield _Pictured(index, scene, np.random.default_rng((QUESTIONS_SEED, index, 4)))


def _any(scene: Scene) -> bool:
    return True


def _related(scene: Scene) -> bool:
    first, second = scene.objects[0], scene.objects[-1]
    return first.shape != second.shape and direction(first, second) is not None


def _counted(scene: Scene) -> bool:
    return scene.tag == "counting"


def _one_kind(scene: Scene) -> bool:
    return len({thing.shape for thing in scene.objects}) == 1


def _article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _plural(shape: str) -> str:
    return f"{shape}es" if shape.endswith("s") else f"{shape}s"


def _is_there(words: str) -> str:
    return f"Is there {_article(words)} in the image?"


def _are_there(number: int, shape: str) -> str:
    if number == 1:
        return f"Is there one {shape} in the image?"
    return f"Are there {NUMBERS[number]} {_plural(shape)} in the image?"


def _how_many(shape: str) -> str:
    return f"How many {_plural(shape)} are there?"


def _what_color(shape: str) -> str:
    return f"What color is the {shape}?"


def _absent_shapes(scene: Scene) -> list[str]:
    shown = {thing.shape for thing in scene.objects}
    return [shape for shape in OBJECT_NAMES if shape not in shown]


def _near_pairs(scene: Scene) -> list[str]:
    """Return what is absent but shares the shape or the colour with an object that is there."""
    shown = {(thing.color, thing.shape) for thing in scene.objects}
    colors, shapes = {color for color, _ in shown}, {shape for _, shape in shown}
    return [
        f"{color} {shape}"
        for color, shape in product(COLORS, OBJECT_NAMES)
        if (color, shape) not in shown and (color in colors) != (shape in shapes)
    ]


def _mme(pictures_per_category: int) -> Iterator[ShapesQuestion]:
    """Yield two questions per picture, one right by yes and one by no, in four of MME's categories."""
    kinds: tuple[tuple[str, Callable[[Scene], bool], Callable[[_Pictured], tuple[str, str]]], ...] = (
        ("existence", _any, _mme_existence),
        ("count", _one_kind, _mme_count),
        ("position", _related, _mme_position),
        ("color", _any, _mme_color),
    )
    for category, wanted, ask in kinds:
        for picture in islice(_pictured(wanted), pictures_per_category):
            question_id = f"{category}/{picture.name}.png"
            for answer, question in zip(("Yes", "No"), ask(picture), strict=True):
                record = {"question_id": question_id, "question": f"{question}{_YES_NO}", "answer": answer}
                record["category"] = category
                yield ShapesQuestion(f"{question_id}/{answer.lower()}", record, picture.scenes)


def _mme_existence(picture: _Pictured) -> tuple[str, str]:
    there = picture.pick(picture.scene.objects).shape
    return _is_there(there), _is_there(picture.pick(_absent_shapes(picture.scene)))


def _mme_count(picture: _Pictured) -> tuple[str, str]:
    number, shape = len(picture.scene.objects), picture.scene.objects[0].shape
    other = picture.pick([n for n in NUMBERS if n != number])
    return _are_there(number, shape), _are_there(other, shape)


def _mme_position(picture: _Pictured) -> tuple[str, str]:
    first, second = picture.scene.objects[0], picture.scene.objects[-1]
    true = direction(first, second)
    assert true is not None
    false = RELATIONS[RELATIONS.index(true) ^ 1]
    right, wrong = (f"Is the {first.shape} {way} the {second.shape}?" for way in (true, false))
    return right, wrong


def _mme_color(picture: _Pictured) -> tuple[str, str]:
    thing = picture.pick(picture.scene.objects)
    shown = {other.color for other in picture.scene.objects if other.shape == thing.shape}
    false = picture.pick([color for color in COLORS if color not in shown])
    return _is_there(f"{thing.color} {thing.shape}"), _is_there(f"{false} {thing.shape}")


def _pope(num_pictures: int) -> Iterator[ShapesQuestion]:
    """Yield twelve questions per picture: in each split two about what is there and two about what is not.

    Absent objects are any shapes (random), the shapes most frequent in the set (popular), or share the shape or the
    colour with what is there (adversarial).
    """
    pictures = list(islice(_pictured(), num_pictures))
    frequency = Counter(thing.shape for picture in pictures for thing in picture.scene.objects)
    ranked = sorted(OBJECT_NAMES, key=lambda shape: (-frequency[shape], shape))
    for picture in pictures:
        thing = picture.pick(picture.scene.objects)
        present = [thing.shape, f"{thing.color} {thing.shape}"]
        absent = _absent_shapes(picture.scene)
        near = _near_pairs(picture.scene)
        wrong = {
            "adversarial": [near[i] for i in picture.rng.permutation(len(near))[:2]],
            "popular": [shape for shape in ranked if shape in absent][:2],
            "random": [absent[i] for i in picture.rng.permutation(len(absent))[:2]],
        }
        for split, names in wrong.items():
            asked = [(name, "yes") for name in present] + [(name, "no") for name in names]
            for place, (name, answer) in enumerate(asked):
                item_id = f"{split}/{picture.name}/{place}"
                record = {"id": item_id, "question_id": str(place), "question": _is_there(name), "answer": answer}
                record |= {"image_source": picture.name, "category": split}
                yield ShapesQuestion(item_id, record, picture.scenes)


def _gqa(num_pictures: int) -> Iterator[ShapesQuestion]:
    """Yield three questions per picture: a colour, a shape or a number, and whether something is there."""
    for place, picture in enumerate(islice(_pictured(), num_pictures)):
        thing = picture.pick(picture.scene.objects)
        alike = sum(other.shape == thing.shape for other in picture.scene.objects)
        asked = [(_what_color(thing.shape), thing.color), (_how_many(thing.shape), NUMBERS[alike])]
        if place % 2:
            asked[1] = (f"What is {thing.color} in the image?", thing.shape)
        there = place % 4 >= 2
        shape = thing.shape if there else picture.pick(_absent_shapes(picture.scene))
        asked += [(_is_there(shape), "yes" if there else "no")]
        for number, (question, answer) in enumerate(asked):
            item_id = f"{picture.index:06d}{number}"
            record = {"id": item_id, "imageId": picture.name, "question": question, "answer": answer}
            yield ShapesQuestion(item_id, record, picture.scenes)


def _options(picture: _Pictured, place: int, right: str, wrong: list[str]) -> tuple[list[str], str]:
    """Return four options with the right one at a place, and its letter; places in turn favour no letter."""
    picked = [wrong[i] for i in picture.rng.permutation(len(wrong))[:3]]
    place %= 4
    return [*picked[:place], right, *picked[place:]], "ABCD"[place]


def _color_choice(picture: _Pictured, place: int) -> tuple[str, list[str], str]:
    thing = picture.pick(picture.scene.objects)
    return _what_color(thing.shape), *_options(picture, place, thing.color, [c for c in COLORS if c != thing.color])


def _shape_choice(picture: _Pictured, place: int) -> tuple[str, list[str], str]:
    thing = picture.pick(picture.scene.objects)
    return "Which object is in the image?", *_options(picture, place, thing.shape, _absent_shapes(picture.scene))


def _number_choice(picture: _Pictured, place: int) -> tuple[str, list[str], str]:
    thing = picture.pick(picture.scene.objects)
    number = sum(other.shape == thing.shape for other in picture.scene.objects)
    others = [word for word in NUMBERS.values() if word != NUMBERS[number]]
    return _how_many(thing.shape), *_options(picture, place, NUMBERS[number], others)


def _seed(num_pictures: int) -> Iterator[ShapesQuestion]:
    """Yield three questions per picture, in SEED-Bench's dimensions 2 (what), 3 (which colour) and 5 (how many)."""
    for number, picture in enumerate(islice(_pictured(), num_pictures)):
        for dimension, ask in ((2, _shape_choice), (3, _color_choice), (5, _number_choice)):
            question, options, answer = ask(picture, number + dimension)
            item_id = f"{picture.index}_{dimension}"
            record: dict[str, Any] = {"question_id": item_id, "question": question, "answer": answer}
            record |= {f"choice_{letter}": option for letter, option in zip("abcd", options, strict=True)}
            record |= {"data_type": "image", "data_id": picture.name, "question_type_id": dimension}
            yield ShapesQuestion(item_id, record, picture.scenes)


def _mmmu(questions_per_subject: int) -> Iterator[ShapesQuestion]:
    """Yield questions of four of MMMU's subjects; every fifth of Math is about two pictures, every third is open."""
    for subject, wanted, ask in (
        ("Art", _any, _mmmu_shape),
        ("Design", _any, _mmmu_color),
        ("Geography", _related, _mmmu_relation),
        ("Math", _counted, _mmmu_number),
    ):
        for number, picture in enumerate(islice(_pictured(wanted), questions_per_subject), start=1):
            fields, scenes = ask(picture, number)
            item_id = f"validation_{subject}_{number}"
            yield ShapesQuestion(item_id, {"id": item_id, **fields}, scenes)


_Asked = tuple[dict[str, Any], tuple[tuple[int, int], ...]]


def _mmmu_shape(picture: _Pictured, number: int) -> _Asked:
    return _mmmu_choice(*_shape_choice(picture, number)), picture.scenes


def _mmmu_color(picture: _Pictured, number: int) -> _Asked:
    return _mmmu_choice(*_color_choice(picture, number), is_open=number % 3 == 0), picture.scenes


def _mmmu_relation(picture: _Pictured, number: int) -> _Asked:
    truth = number % 2 == 0
    question = _mme_position(picture)[0 if truth else 1]
    return _mmmu_open(f"<image 1> {question}", "Yes" if truth else "No"), picture.scenes


def _mmmu_number(picture: _Pictured, number: int) -> _Asked:
    """Ask for the number in a scene; every fifth time another scene without that shape stands beside it."""
    asked = _number_choice(picture, number)
    if number % 5:
        return _mmmu_choice(*asked, is_open=number % 3 == 0), picture.scenes
    shape = picture.scene.objects[0].shape
    other = next(
        index
        for index in count(picture.index + 1)
        if shape not in {thing.shape for thing in sample_scene(QUESTIONS_SEED, index).objects}
    )
    fields = _mmmu_choice(f"<image 2> {asked[0]}", *asked[1:])
    return fields, (*picture.scenes, (QUESTIONS_SEED, other))


def _mmmu_choice(question: str, options: list[str], answer: str, *, is_open: bool = False) -> dict[str, Any]:
    question = f"<image 1> {question}"
    if is_open:
        return _mmmu_open(question, options["ABCD".index(answer)])
    return {"question": question, "options": repr(options), "answer": answer, "question_type": "multiple-choice"}


def _mmmu_open(question: str, answer: str) -> dict[str, Any]:
    return {"question": question, "options": "[]", "answer": answer, "question_type": "open"}


SETS: Mapping[str, Callable[[int], Iterator[ShapesQuestion]]] = {
    "mme": _mme,
    "pope": _pope,
    "gqa": _gqa,
    "mmmu": _mmmu,
    "seed": _seed,
}
"""The set of each benchmark by its size: pictures per category of MME, questions per subject of MMMU, else pictures."""
