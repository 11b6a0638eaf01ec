"""The texts and parsing rules of T2I-CompBench's judges.

`srum-2025-11` asks one question for every category and reads a score of 0 to 100 from a free reply; what RecA's
numbers come from. `compbench-mllm-v1` first lets the judge describe the picture, then asks with the rubric of the
category, for attributes once per noun phrase; the texts are the benchmark's own, the protocol around them is ours.

Source: WayneJin0918/SRUM@a53ba18, CompBench_eval; Karine-Huang/T2I-CompBench@1b70949, MiniGPT4-CoT_eval.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence

__all__ = [
    "ATTRIBUTES",
    "CATEGORIES",
    "COMPLEX_GROUPS",
    "SCORE_SCHEMA",
    "describe_text",
    "group_of",
    "noun_chunks",
    "parse_free_score",
    "parse_json_score",
    "parse_srum",
    "product_score",
    "rubric_texts",
    "srum_text",
]

CATEGORIES = ("color", "shape", "texture", "spatial", "non_spatial", "numeracy", "3d_spatial", "complex")
"""The benchmark's eight categories, in the paper's order."""
ATTRIBUTES = ("color", "shape", "texture")
COMPLEX_GROUPS = ("complex_general", "complex_action", "complex_spatial")
"""Rows that `complex` is the unweighted mean of: all, and those of two relation types once more."""

SCORE_SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {
            "score": {"type": "integer", "minimum": 0, "maximum": 100},
            "explanation": {"type": "string"},
        },
        "required": ["score", "explanation"],
        "additionalProperties": False,
    }
)

_SRUM = (
    "You are my assistant to evaluate the correspondence of the image to a given text prompt. "
    "Focus on the objects in the image and their attributes (such as color, shape, texture), spatial layout and action "
    "relationships. "
    'According to the image, evaluate how well the image aligns with the text prompt: "{prompt}" '
    "Give a score from 0 to 100, according the criteria: \n"
    "81-100: the image perfectly matches the content of the text prompt, with no discrepancies. \n"
    "61-80: the image portrayed most of the actions, events and relationships but with minor discrepancies. \n"
    "41-60: the image depicted some elements in the text prompt, but ignored some key parts or details. \n"
    "21-40: the image did not depict any actions or events that match the text. \n"
    "1-20: the image failed to convey the full scope in the text prompt. \n"
    "Provide your analysis and explanation in JSON format with the following keys: score (e.g., 2), explanation "
    "(within 20 words)."
)
_ASSISTANT = "You are my assistant to "
_DESCRIBE = {
    "attribute": "identify any objects and their {category} in the image. Briefly describe what it is in the image "
    "within 50 words.",
    "spatial": "identify objects and their spatial layout in the image. Briefly describe the image within 50 words.",
    "non_spatial": "identify the actions, events, objects and their relationships in the image. Briefly describe the "
    "image within 50 words.",
    "numeracy": "identify objects and their quantities in the image. Briefly describe the image within 50 words, focus "
    "on the objects in the image and their quantity.",
    "complex": "evaluate the correspondence of the image to a given text prompt. Briefly describe the image within 50 "
    "words, focus on the objects in the image and their attributes (such as color, shape, texture), spatial layout and "
    "action relationships.",
}
_LEAD = "According to the image and your previous answer, evaluate "
_LEADS = {
    "attribute": "if there is {chunk} in the image.",
    "spatial": 'if the text "{prompt}" is correctly portrayed in the image.',
    "non_spatial": 'if the text "{prompt}" is correctly portrayed in the image.',
    "numeracy": 'how well the image aligns with the text prompt: "{prompt}".',
    "complex": 'how well the image aligns with the text prompt: "{prompt}".',
}
_CRITERIA = " Give a score from 0 to 100, according the criteria:\n{anchors}\n"
_FORM = (
    "Provide your analysis and explanation in JSON format with the following keys: score (e.g., 85), explanation "
    "(within 20 words)."
)
_LAYOUT = (
    "image not aligned properly with the text",
    "image almost irrelevant to the text",
)
_ANCHORS = {
    "attribute": (
        "there is {noun}, and {noun} is {adjective}",
        "there is {noun}, {noun} is mostly {adjective}",
        "there is {noun}, but it is not {adjective}",
        "no {noun} in the image",
    ),
    "spatial": (
        "correct spatial layout in the image for all objects mentioned in the text",
        "basically, spatial layout of objects matches the text",
        "spatial layout not aligned properly with the text",
        *_LAYOUT,
    ),
    "non_spatial": (
        "the image accurately portrayed the actions, events and relationships between objects described in the text.",
        "the image portrayed most of the actions, events and relationships but with minor discrepancies.",
        "the image depicted some elements, but action relationships between objects are not correct.",
        "the image failed to convey the full scope of the text.",
        "the image did not depict any actions or events that match the text.",
    ),
    "numeracy": (
        "correct numerical content in the image for all objects mentioned in the text",
        "basically, numerical content of objects matches the text",
        "numerical content not aligned properly with the text",
        *_LAYOUT,
    ),
    "complex": (
        "the image perfectly matches the content of the text prompt, with no discrepancies.",
        "the image portrayed most of the actions, events and relationships but with minor discrepancies.",
        "the image depicted some elements in the text prompt, but ignored some key parts or details.",
        "the image did not depict any actions or events that match the text.",
        "the image failed to convey the full scope in the text prompt.",
    ),
}
_MARKS = {"attribute": (100, 75, 20, 10)}
_FIVE_MARKS = (100, 80, 60, 40, 20)
_ARTICLES = {"a", "an", "the"}
_NOT_A_THING = {"top", "side", "left", "right", "front", "back"}
_BETWEEN = re.compile(
    r",|\.|\b(?:and|or|with|on|in|of|at|to|by|near|next|beside|under|over|above|below|behind|from|into|has|have|is|are|"
    r"was|were|for|against|through|around|between|hidden|standing|sitting|lying)\b"
)


def group_of(category: str) -> str:
    """Return the group that a row's category is averaged in."""
    name = category.replace("-", "_")
    return COMPLEX_GROUPS[0] if name == "complex" else name


def srum_text(prompt: str) -> str:
    """Return what `srum-2025-11` says to the judge."""
    return _SRUM.format(prompt=prompt)


def parse_srum(reply: str) -> int | None:
    """Read the score of a free reply as `srum-2025-11` does, whatever its size; None where it finds none."""
    text = re.sub(r"```(?:json)?", "", reply)
    if found := re.search(r'{\s*.*"score":\s*(\d+).*?}', text, flags=re.DOTALL):
        try:
            score = json.loads(found[0])["score"]
        except (ValueError, KeyError, TypeError):
            score = None
        if isinstance(score, int) and not isinstance(score, bool):
            return score
    found = re.search(r'"score":\s*"?(\d+)"?', text)
    return int(found[1]) if found else None


def parse_json_score(reply: str) -> int | None:
    """Read the score of a reply that must obey `SCORE_SCHEMA`; None where it does not."""
    try:
        value = json.loads(reply)
    except ValueError:
        return None
    score = value.get("score") if isinstance(value, dict) else None
    if not isinstance(score, int) or isinstance(score, bool) or not isinstance(value.get("explanation"), str):
        return None
    return score if 0 <= score <= 100 else None


def parse_free_score(reply: str) -> int | None:
    """Read the score of a free reply to `compbench-mllm-v1`; None where it finds none of 0 to 100."""
    score = parse_srum(reply)
    return score if score is not None and 0 <= score <= 100 else None


def describe_text(category: str) -> str:
    """Return the first turn of `compbench-mllm-v1`."""
    return _ASSISTANT + _DESCRIBE[_family(category)].format(category=category)


def rubric_texts(category: str, prompt: str) -> list[str]:
    """Return the second turns of `compbench-mllm-v1`: one per noun phrase for attributes, else one."""
    family = _family(category)
    if family != "attribute":
        return [_rubric(family, prompt=prompt)]
    return [_rubric(family, chunk=chunk) for chunk in noun_chunks(prompt)]


def noun_chunks(prompt: str) -> list[str]:
    """Return the noun phrases of a prompt, in order, by a rule of ours.

    The prompt is cut at commas, conjunctions, prepositions and a few verbs; pieces that name no thing are left out.
    Upstream takes spaCy's noun chunks, which differ on long sentences.
    """
    pieces = (piece.strip() for piece in _BETWEEN.split(prompt.strip()))
    chunks = [piece for piece in pieces if set(piece.lower().split()) - _ARTICLES - _NOT_A_THING]
    return chunks or [prompt.strip().rstrip(".")]


def product_score(scores: Sequence[int]) -> float:
    """Return the product of scores of 0 to 100, on that scale."""
    return 100 * math.prod(score / 100 for score in scores)


def _family(category: str) -> str:
    if category in ATTRIBUTES:
        return "attribute"
    return "spatial" if category == "3d_spatial" else category


def _rubric(family: str, *, prompt: str = "", chunk: str = "") -> str:
    words = [word for word in chunk.split() if word.lower() not in _ARTICLES]
    noun, adjective = (words[-1], " ".join(words[:-1]) or words[-1]) if words else ("", "")
    marks = _MARKS.get(family, _FIVE_MARKS)
    lines = (anchor.format(noun=noun, adjective=adjective) for anchor in _ANCHORS[family])
    anchors = "\n".join(f"{mark}: {line}" for mark, line in zip(marks, lines, strict=True))
    return _LEAD + _LEADS[family].format(prompt=prompt, chunk=chunk) + _CRITERIA.format(anchors=anchors) + _FORM
