"""Prompts of the embedded world for benchmarks of long and compositional prompts.

`dense_prompts` tells of two to four objects in several sentences, with a graph of yes/no questions after DPG-Bench's
schema; `compositional_prompts` has those of T2I-CompBench's categories that shapes can show (colour, shape, spatial,
numeracy, complex; the world knows no textures, actions or depth). `statements` reads a prompt or a question back into
what it claims, so that a reader of scenes can answer it: the grammar is closed, and the two directions are one module.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from segros_train.data.shapes.captions import NUMBERS
from segros_train.data.shapes.world import COLORS, OBJECT_NAMES, RELATIONS

__all__ = ["Claim", "compositional_prompts", "dense_prompts", "statements"]

_SEED = 1065
_CATEGORIES = ("color", "shape", "spatial", "numeracy", "complex")
_PLACES = {
    "left of": "on the left of",
    "right of": "on the right of",
    "above": "on top of",
    "below": "on the bottom of",
}
"""T2I-CompBench's words for the world's relations."""
_RELATION_OF = {phrase: relation for relation, phrase in _PLACES.items()} | {
    relation: relation for relation in RELATIONS
}


@dataclass(frozen=True)
class Claim:
    """Something that a picture shows or does not.

    Attributes:
        shape: What there is.
        count: How many of it there are; exactly so many where `exact`, else at least.
        color: Its colour; None for any.
        relation: How it stands to the target; None where nothing is said.
        target: (shape, colour or None) of the target.
        exact: Whether there are no more than `count`.
    """

    shape: str
    count: int = 1
    color: str | None = None
    relation: str | None = None
    target: tuple[str, str | None] | None = None
    exact: bool = False


def dense_prompts(number: int) -> list[dict[str, Any]]:
    """Return long prompts with their graphs of questions, the same whatever the seed of a run.

    Every record has `item_id`, `prompt`, `questions` (each with `id`, `category`, `text`, `parents`) and
    `heads_table`. Source of the schema: TencentQQGYLab/ELLA, dpg_bench/dpg_bench.csv.
    """
    return [_dense(index) for index in range(number)]


def compositional_prompts(per_category: int) -> list[dict[str, Any]]:
    """Return prompts of five categories, at most `per_category` of each: `prompt`, `category`, `question_id`."""
    rng = np.random.default_rng(_SEED)
    pairs = [(a, b) for a, b in product(OBJECT_NAMES, repeat=2) if a != b]
    hues = [(a, b) for a, b in product(COLORS, repeat=2) if a != b]
    numbers = list(product((1, 2, 3), repeat=2))[1:]
    everything: dict[str, list[str]] = {
        "color": [f"{_a(f'{h} {a}')} and {_a(f'{k} {b}')}" for (a, b), (h, k) in product(pairs, hues)],
        "shape": [f"{_a(a)} and {_a(b)}" for a, b in pairs],
        "spatial": [f"{_a(a)} {_PLACES[r]} {_a(b)}" for (a, b), r in product(pairs, RELATIONS)],
        "numeracy": [f"{_some(a, n)} and {_some(b, m)}" for (a, b), (n, m) in product(pairs, numbers)],
        "complex": [
            f"{_a(f'{h} {a}')} {_PLACES[r]} {_a(f'{k} {b}')}" for (a, b), (h, k), r in product(pairs, hues, RELATIONS)
        ],
    }
    chosen = [
        (category, everything[category][place])
        for category in _CATEGORIES
        for place in rng.permutation(len(everything[category]))[:per_category]
    ]
    return [
        {"prompt": prompt, "category": category, "question_id": number}
        for number, (category, prompt) in enumerate(chosen, start=1)
    ]


def statements(text: str) -> list[Claim]:
    """Read the claims of a compositional prompt, or the one of a question about a dense prompt.

    Raises:
        ValueError: If the text is in neither grammar.
    """
    words = text.strip().rstrip("?.").lower()
    for pattern, read in _FORMS:
        if found := pattern.fullmatch(words):
            return read(found)
    raise ValueError(f"No prompt or question of the embedded world: {text!r}.")


def _dense(index: int) -> dict[str, Any]:
    rng = np.random.default_rng((_SEED, index))
    number = int(rng.integers(2, 5))
    shapes = [OBJECT_NAMES[place] for place in rng.permutation(len(OBJECT_NAMES))[:number]]
    colors = [tuple(COLORS)[place] for place in rng.permutation(len(COLORS))[:number]]
    relation = RELATIONS[int(rng.integers(len(RELATIONS)))]
    things = list(zip(shapes, colors, strict=True))
    listed = ", ".join(_a(shape) for shape, _ in things[:-1]) + f" and {_a(things[-1][0])}"
    sentences = [f"A plain picture in which {number} things lie on a grey, uneven ground: {listed}."]
    sentences += [f"The {shape} is {color}." for shape, color in things]
    sentences.append(f"The {shapes[0]} is {relation} the {shapes[1]}.")
    questions: list[dict[str, Any]] = []

    def ask(category: str, text: str, *parents: int) -> int:
        questions.append({"id": len(questions) + 1, "category": category, "text": text, "parents": list(parents)})
        return len(questions)

    seen = [ask("entity - whole", f"Is there {_a(shape)}?") for shape in shapes]
    for parent, (shape, color) in zip(seen, things, strict=True):
        ask("attribute - color", f"Is the {shape} {color}?", parent)
    ask("relation - spatial", f"Is the {shapes[0]} {relation} the {shapes[1]}?", *seen[:2])
    for parent, shape in zip(seen[:1], shapes[:1], strict=True):
        ask("other - count", f"Is there exactly one {shape}?", parent)
    return {
        "item_id": f"shapes{index}",
        "prompt": " ".join(sentences),
        "questions": questions,
        "heads_table": index == 0,
    }


def _a(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _some(shape: str, number: int) -> str:
    return f"{NUMBERS[number]} {_plural(shape) if number > 1 else shape}"


def _plural(shape: str) -> str:
    return shape + ("es" if shape.endswith("s") else "s")


_COUNTS = {word: number for number, word in NUMBERS.items()}
_SINGULAR: Mapping[str, str] = {name: name for name in OBJECT_NAMES} | {_plural(name): name for name in OBJECT_NAMES}
_SHAPE = f"({'|'.join(OBJECT_NAMES)})"
_COLOR = f"({'|'.join(COLORS)})"
_WHERE = f"({'|'.join(sorted(_RELATION_OF, key=len, reverse=True))})"
_THING = rf"an? (?:{_COLOR} )?{_SHAPE}"
_MANY = rf"({'|'.join(_COUNTS)}) ({'|'.join(sorted(_SINGULAR, key=len, reverse=True))})"


def _two_things(found: re.Match[str]) -> list[Claim]:
    return [Claim(found[2], color=found[1]), Claim(found[4], color=found[3])]


def _placed(found: re.Match[str]) -> list[Claim]:
    first, second = Claim(found[2], color=found[1]), Claim(found[5], color=found[4])
    target = (second.shape, second.color)
    return [first, second, Claim(first.shape, color=first.color, relation=_RELATION_OF[found[3]], target=target)]


def _counted(found: re.Match[str]) -> list[Claim]:
    pairs = ((found[1], found[2]), (found[3], found[4]))
    return [Claim(_SINGULAR[shape], count=_COUNTS[number], exact=True) for number, shape in pairs]


_FORMS = tuple(
    (re.compile(pattern), read)
    for pattern, read in (
        (rf"{_THING} and {_THING}", _two_things),
        (rf"{_THING} {_WHERE} {_THING}", _placed),
        (rf"{_MANY} and {_MANY}", _counted),
        (rf"is there {_THING}", lambda found: [Claim(found[2], color=found[1])]),
        (rf"is the {_SHAPE} {_COLOR}", lambda found: [Claim(found[1], color=found[2])]),
        (
            rf"is the {_SHAPE} {_WHERE} the {_SHAPE}",
            lambda found: [Claim(found[1], relation=_RELATION_OF[found[2]], target=(found[3], None))],
        ),
        (rf"is there exactly one {_SHAPE}", lambda found: [Claim(found[1], exact=True)]),
    )
)
