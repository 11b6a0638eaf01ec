"""Yes or no: what each harness reads out of an answer.

The four rules agree on a bare "Yes" or "No" and part ways on everything else. Each returns None for an answer it
cannot read; what None is worth is the protocol's business.

Sources: EvolvingLMMs-Lab/lmms-eval@75571cf (tasks/mme/utils.py, tasks/pope/utils.py), open-compass/VLMEvalKit@e8e78f0
(dataset/utils/yorn.py), RUCAIBox/POPE evaluate.py as LLaVA and InternVL run it.
"""

from __future__ import annotations

import re
from typing import Literal

__all__ = ["YesNo", "exact", "first_letters", "first_sentence", "whole_word"]

YesNo = Literal["yes", "no"]

_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_DIGIT_COMMA_DIGIT = re.compile(r"\d,\d")
_LONE_PERIOD = re.compile(r"(?<!\d)\.(?!\d)")
_PERIODS_REMOVED = 32
_DENIALS = {"No", "not", "no"}
_PREFIX = 4


def first_letters(answer: str) -> YesNo | None:
    """Read "yes" or "no" off the first four letters, periods removed; a lone y or n counts.

    "Not sure" and "Norway" are therefore no, and "The answer is yes" cannot be read.
    """
    text = answer.lower().strip().replace(".", "")
    if len(text) == 1:
        return _SINGLE.get(text)
    start = text[:_PREFIX]
    if "yes" in start:
        return "yes"
    return "no" if "no" in start else None


_SINGLE: dict[str, YesNo] = {"y": "yes", "n": "no"}
_EXACT: dict[str, YesNo] = {"yes": "yes", "no": "no"}


def exact(answer: str) -> YesNo | None:
    """Read an answer that is nothing but "yes" or "no", in any case; "Yes." cannot be read."""
    return _EXACT.get(answer.strip().lower())


def first_sentence(answer: str) -> YesNo:
    """Read no where the words up to the first period hold "No", "no" or "not", else yes, even of an empty answer.

    Words are parted by single spaces, commas are deleted.
    """
    words = answer.strip().split(".", 1)[0].replace(",", "").split(" ")
    return "yes" if _DENIALS.isdisjoint(words) else "no"


def whole_word(answer: str) -> YesNo | None:
    """Read the one of "yes" and "no" that stands as a word of its own; both or neither cannot be read."""
    words = _bare(answer.lower()).split()
    yes, no = "yes" in words, "no" in words
    if yes == no:
        return None
    return "yes" if yes else "no"


def _bare(text: str) -> str:
    """Free words from punctuation: a mark beside a space vanishes, one between letters becomes a space."""
    numbers = bool(_DIGIT_COMMA_DIGIT.search(text))
    bare = text
    for mark in _MARKS:
        if mark in text:
            beside_space = numbers or f"{mark} " in text or f" {mark}" in text
            bare = bare.replace(mark, "" if beside_space else " ")
    return _LONE_PERIOD.sub("", bare, count=_PERIODS_REMOVED)
