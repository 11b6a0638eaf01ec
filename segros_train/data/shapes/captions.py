"""Words about scenes of the embedded world: captions in GenEval's grammar, questions, evaluation prompts.

Questions come in the forms the understanding benchmarks ask in: yes/no, a word, a number, a letter of A to D.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np

from segros_train.data.shapes.world import (
    COLORS,
    OBJECT_NAMES,
    RELATIONS,
    TAGS,
    Scene,
    SceneObject,
    direction,
    sample_scene,
)
from segros_train.types import Turn

__all__ = [
    "LETTER",
    "NUMBERS",
    "WORD",
    "caption",
    "caption_question",
    "corpus",
    "geneval_metadata",
    "question",
    "spread_caption",
]

WORD = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."
"""The field's standard requests for short answers. Source: LLaVA-1.5's evaluation prompts, as lmms-eval uses them."""

NUMBERS = {1: "one", 2: "two", 3: "three", 4: "four"}
_EVALUATION_SEED = 553


def _with_article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _plural(noun: str) -> str:
    return noun + ("es" if noun.endswith("s") else "s")


def _named(shape: str, color: str | None = None) -> str:
    return _with_article(f"{color} {shape}" if color else shape)


def caption(scene: Scene) -> str:
    """Describe a scene in GenEval's template for its tag. Source: djghosh13/geneval, prompts/create_prompts.py."""
    first, second = scene.objects[0], scene.objects[1 % len(scene.objects)]
    match scene.tag:
        case "single_object":
            words = _named(first.shape)
        case "colors":
            words = _named(first.shape, first.color)
        case "counting":
            count = len(scene.objects)
            words = f"{NUMBERS[count]} {_plural(first.shape)}" if count in NUMBERS else _crowd(first)
        case "two_object":
            words = f"{_named(first.shape)} and {_named(second.shape)}"
        case "position":
            words = f"{_named(first.shape)} {scene.relation} {_named(second.shape)}"
        case _:
            words = f"{_named(first.shape, first.color)} and {_named(second.shape, second.color)}"
    return f"a photo of {words}"


def _crowd(thing: SceneObject) -> str:
    return f"many {thing.color} {_plural(thing.shape)}"


def spread_caption(scene: Scene) -> str:
    """Describe what `spread_scene` makes of a scene."""
    return f"{caption(scene)} everywhere"


def _pick(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[int(rng.integers(len(options)))]


def _other(rng: np.random.Generator, options: tuple[str, ...], *taken: str) -> str:
    return _pick(rng, tuple(name for name in options if name not in taken))


def _subject(scene: Scene, rng: np.random.Generator) -> SceneObject:
    return scene.objects[int(rng.integers(len(scene.objects)))]


def _is_there(scene: Scene, rng: np.random.Generator) -> Turn:
    thing = _subject(scene, rng)
    truth = bool(rng.random() < 0.5)
    if rng.random() < 0.5:
        named = _named(thing.shape if truth else _other(rng, OBJECT_NAMES, *(o.shape for o in scene.objects)))
    elif truth:
        named = _named(thing.shape, thing.color)
    else:
        seen = {(o.shape, o.color) for o in scene.objects}
        absent = [pair for pair in product(OBJECT_NAMES, COLORS) if pair not in seen]
        near = [pair for pair in absent if (pair[0] == thing.shape) != (pair[1] == thing.color)]
        named = _named(*near[int(rng.integers(len(near)))])
    ask = f"Is there {named} in the {'image' if rng.random() < 0.7 else 'picture'}?"
    return _yes_no(ask, truth, rng)


def _yes_no(ask: str, truth: bool, rng: np.random.Generator) -> Turn:
    form = rng.random()
    if form < 0.4:
        return Turn(f"{ask}\n{WORD}", _answer(truth))
    if form < 0.7:
        return Turn(f"{ask} Please answer yes or no.", _answer(truth))
    return Turn(ask, _answer(truth))


def _are_there(scene: Scene, rng: np.random.Generator) -> Turn:
    thing = _subject(scene, rng)
    count = sum(o.shape == thing.shape for o in scene.objects)
    truth = bool(rng.random() < 0.5)
    named = count if truth else int(rng.choice([n for n in NUMBERS if n != count]))
    noun = thing.shape if named == 1 else _plural(thing.shape)
    be = "Is" if named == 1 else "Are"
    return _yes_no(f"{be} there {NUMBERS[named]} {noun} in the image?", truth, rng)


def _relation(scene: Scene, rng: np.random.Generator) -> Turn:
    first, second = scene.objects[:2] if rng.random() < 0.5 else scene.objects[1::-1]
    true = direction(first, second)
    if true is None or first.shape == second.shape:
        return _is_there(scene, rng)
    truth = bool(rng.random() < 0.5)
    opposite = RELATIONS[RELATIONS.index(true) ^ 1]
    return _yes_no(f"Is the {first.shape} {true if truth else opposite} the {second.shape}?", truth, rng)


def _how_many(scene: Scene, rng: np.random.Generator) -> Turn:
    thing = _subject(scene, rng)
    count = sum(o.shape == thing.shape for o in scene.objects)
    ask = f"How many {_plural(thing.shape)} are there?"
    options = tuple(NUMBERS.values())
    if rng.random() < 0.5:
        return _choice(ask, NUMBERS[count], options, rng)
    return Turn(f"{ask}\n{WORD}", NUMBERS[count])


def _what_color(scene: Scene, rng: np.random.Generator) -> Turn:
    thing = _subject(scene, rng)
    ask = f"What color is the {thing.shape}?"
    if rng.random() < 0.6:
        return _choice(ask, thing.color, tuple(COLORS), rng)
    return Turn(f"{ask}\n{WORD}", thing.color)


def _what_shape(scene: Scene, rng: np.random.Generator) -> Turn:
    thing = _subject(scene, rng)
    others = {o.shape for o in scene.objects} - {thing.shape}
    options = tuple(name for name in OBJECT_NAMES if name not in others)
    if rng.random() < 0.6:
        return _choice("Which object is in the image?", thing.shape, options, rng)
    return Turn(f"What is {thing.color} in the image?\n{WORD}", thing.shape)


def _choice(ask: str, answer: str, options: tuple[str, ...], rng: np.random.Generator) -> Turn:
    wrong = [option for option in options if option != answer]
    picked = [wrong[i] for i in rng.permutation(len(wrong))[:3]]
    place = int(rng.integers(4))
    picked.insert(place, answer)
    lines = "\n".join(f"{letter}. {option}" for letter, option in zip("ABCD", picked, strict=True))
    return Turn(f"{ask}\n{lines}\n{LETTER}", "ABCD"[place])


_Kind = Callable[[Scene, np.random.Generator], Turn]
_ABOUT_ONE: tuple[_Kind, ...] = (_is_there, _what_color, _what_shape, _is_there, _how_many, _what_color)
_ABOUT_MANY: tuple[_Kind, ...] = (_is_there, _what_color, _what_shape, _how_many, _are_there, _relation)


def question(scene: Scene, rng: np.random.Generator) -> Turn:
    """Draw a question about a scene with its answer."""
    kinds = _ABOUT_MANY if len(scene.objects) > 1 else _ABOUT_ONE
    return kinds[int(rng.integers(len(kinds)))](scene, rng)


def caption_question(scene: Scene, rng: np.random.Generator) -> Turn:
    """Draw a question that the caption of a scene answers, with its answer."""
    first, second = scene.objects[0], scene.objects[1 % len(scene.objects)]
    told = {"colors": ("color", "shape"), "color_attr": ("color", "shape"), "counting": ("number",)}
    kinds = ("there", *told.get(scene.tag, ()), *(("relation",) if scene.relation else ()))
    thing = (first, second)[int(rng.integers(2))]
    truth = bool(rng.random() < 0.5)
    match _pick(rng, kinds):
        case "color":
            return Turn(f"What color is the {thing.shape}?", thing.color)
        case "shape":
            return Turn(f"What is {thing.color} in the image?", thing.shape)
        case "number":
            return Turn(f"How many {_plural(first.shape)} are there?", NUMBERS[len(scene.objects)])
        case "relation":
            assert scene.relation is not None
            place = RELATIONS.index(scene.relation) ^ (not truth)
            if thing is second:
                return Turn(f"Is the {second.shape} {RELATIONS[place ^ 1]} the {first.shape}?", _answer(truth))
            return Turn(f"Is the {first.shape} {RELATIONS[place]} the {second.shape}?", _answer(truth))
        case _:
            named = thing.shape if truth else _other(rng, OBJECT_NAMES, first.shape, second.shape)
            return Turn(f"Is there {_with_article(named)} in the image?", _answer(truth))


def _answer(truth: bool) -> str:
    return "Yes" if truth else "No"


def corpus(size: int, *, seed: int = 2) -> list[str]:
    """Return captions and dialogues, for the training of a tokenizer."""
    texts = []
    for index in range(size):
        scene = sample_scene(seed, index)
        turn = question(scene, np.random.default_rng((seed, index, 1)))
        texts += [caption(scene), spread_caption(scene), turn.question, turn.answer]
    return texts


def geneval_metadata(prompts_per_tag: int) -> list[dict[str, Any]]:
    """Return evaluation prompts of the embedded world in GenEval's schema, at most `prompts_per_tag` per tag.

    Tags with fewer distinct prompts (`single_object` has one per shape) return all they have. Prompts are the
    same whatever the seed of a run. Source of the schema: djghosh13/geneval, prompts/evaluation_metadata.jsonl.
    """
    rng = np.random.default_rng(_EVALUATION_SEED)
    pairs = [(a, b) for a, b in product(OBJECT_NAMES, repeat=2) if a != b]
    hues = [(a, b) for a, b in product(COLORS, repeat=2) if a != b]
    everything: dict[str, list[dict[str, Any]]] = {
        "single_object": [_single(shape) for shape in OBJECT_NAMES],
        "two_object": [_two(*pair) for pair in pairs],
        "counting": [_counted(shape, n) for n, shape in product((2, 3, 4), OBJECT_NAMES)],
        "colors": [_colored(shape, color) for shape, color in product(OBJECT_NAMES, COLORS)],
        "position": [_placed(*pair, relation) for pair, relation in product(pairs, RELATIONS)],
        "color_attr": [_attributed(*pair, *hue) for pair, hue in product(pairs, hues)],
    }
    chosen = []
    for tag in TAGS:
        items = everything[tag]
        chosen += [items[i] for i in rng.permutation(len(items))[:prompts_per_tag]]
    return chosen


def _record(tag: str, words: str, include: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    return {"tag": tag, "include": include, **more, "prompt": f"a photo of {words}"}


def _one(shape: str, **more: Any) -> dict[str, Any]:
    return {"class": shape, "count": 1, **more}


def _single(shape: str) -> dict[str, Any]:
    return _record("single_object", _named(shape), [_one(shape)])


def _two(first: str, second: str) -> dict[str, Any]:
    return _record("two_object", f"{_named(first)} and {_named(second)}", [_one(first), _one(second)])


def _counted(shape: str, count: int) -> dict[str, Any]:
    include, exclude = {"class": shape, "count": count}, {"class": shape, "count": count + 1}
    return _record("counting", f"{NUMBERS[count]} {_plural(shape)}", [include], exclude=[exclude])


def _colored(shape: str, color: str) -> dict[str, Any]:
    return _record("colors", _named(shape, color), [_one(shape, color=color)])


def _placed(first: str, second: str, relation: str) -> dict[str, Any]:
    include = [_one(second), _one(first, position=[relation, 0])]
    return _record("position", f"{_named(first)} {relation} {_named(second)}", include)


def _attributed(first: str, second: str, hue: str, other: str) -> dict[str, Any]:
    include = [_one(first, color=hue), _one(second, color=other)]
    return _record("color_attr", f"{_named(first, hue)} and {_named(second, other)}", include)
