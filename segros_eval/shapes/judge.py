"""The judge of the embedded world: answers about its pictures by reading them (`reader.py`).

It is asked in the same words as a vision language model and answers in words, so that prompts, parsing and counting
are the same code in both worlds. What it does not understand it does not answer.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Sequence
from typing import Any

from segros_eval.benchmarks.base import JudgeReply, JudgeRequest
from segros_eval.benchmarks.folders import read_response
from segros_eval.benchmarks.geneval.rules import relative_position
from segros_eval.shapes.reader import SeenObject, read_scene
from segros_train.data.shapes.prompts import Claim, statements

__all__ = ["SceneJudge", "holds"]

_MIN_SCORE = 0.3
_POSITION_THRESHOLD = 0.1
_QUOTED = re.compile(r'"([^"]+)"')
_NAMED = re.compile(r"evaluate if there is (.+) in the image\.")
_QUESTION = re.compile(r"[^.?!]*\?")


class SceneJudge:
    """Answer questions and give scores about pictures of the embedded world."""

    def ask(self, requests: Sequence[JudgeRequest]) -> list[JudgeReply]:
        """Return a reply per request, in order."""
        seen = functools.lru_cache(maxsize=64)(lambda place: _objects(requests[place].image))
        first: dict[int, int] = {}
        return [
            _reply(request.turns[-1], seen(first.setdefault(id(request.image), place)))
            for place, request in enumerate(requests)
        ]


def holds(claim: Claim, seen: Sequence[SeenObject]) -> bool:
    """Say whether a scene shows what a claim says.

    Args:
        claim: What is said.
        seen: Objects of the scene.
    """
    found = [one for one in seen if one.shape == claim.shape and claim.color in (None, one.color)]
    if len(found) < claim.count or (claim.exact and len(found) > claim.count):
        return False
    if claim.relation is None or claim.target is None:
        return True
    shape, color = claim.target
    targets = [one for one in seen if one.shape == shape and color in (None, one.color)]
    return any(
        claim.relation in relative_position(one.box, target.box, threshold=_POSITION_THRESHOLD)
        for one in found
        for target in targets
    )


def _objects(image: Any) -> list[SeenObject]:
    picture = read_response(image)
    assert not isinstance(picture, str), picture
    return [one for one in read_scene(picture) if one.score > _MIN_SCORE]


def _reply(text: str, seen: Sequence[SeenObject]) -> JudgeReply:
    """Answer a yes/no question, or score the prompt that stands in quotation marks from 0 to 100."""
    quoted, named, question = _QUOTED.search(text), _NAMED.search(text), _QUESTION.search(text)
    try:
        if quoted or named:
            claims = statements(quoted[1] if quoted else f"is there {named[1]}" if named else "")
            right = sum(holds(claim, seen) for claim in claims)
            explanation = f"{right} of {len(claims)} things said are shown"
            return JudgeReply(json.dumps({"score": round(100 * right / len(claims)), "explanation": explanation}))
        if question:
            return JudgeReply("yes" if all(holds(claim, seen) for claim in statements(question[0])) else "no")
    except ValueError as error:
        return JudgeReply(None, str(error))
    return JudgeReply(", ".join(f"a {one.color} {one.shape}" for one in seen) or "nothing but background")
