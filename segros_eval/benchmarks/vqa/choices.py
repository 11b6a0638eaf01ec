"""Letters and free answers: what each harness reads out of the answer to a question with options, or with none.

A rule returns None (or no reading) where it finds nothing; none of them guesses. Where upstream guesses, `guess`
repeats its guess for whoever wants to reproduce its tables.

Sources: MMMU-Benchmark/MMMU (eval_utils.py), EvolvingLMMs-Lab/lmms-eval@75571cf (tasks/mmmu/utils.py, the same parser
with other stages; tasks/seedbench/utils.py), open-compass/VLMEvalKit@e8e78f0 (utils/matching_util.py).
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

__all__ = [
    "Reading",
    "first_character",
    "guess",
    "infer_choice",
    "lmms_letter",
    "matches_open",
    "official_letter",
    "open_readings",
]

Reading = float | str
"""One normalised reading of a free answer: a number rounded to two places, or a lower-case text."""

_ENDS = (",", ".", "!", "?", ";", ":", "'")
_MANY_WORDS = 5
_GUESS_SEED = 42


def first_character(answer: str) -> str:
    """Return the first character of an answer, as SEED-Bench's task compares it; empty for an empty answer."""
    return answer.strip()[:1]


def official_letter(answer: str, options: Mapping[str, str]) -> str | None:
    """Read the letter of an option by MMMU's own rule.

    Args:
        answer: The answer as given.
        options: Texts by letter.
    """
    return _staged_letter(answer, options, (_in_brackets, _between_spaces))


def lmms_letter(answer: str, options: Mapping[str, str]) -> str | None:
    """Read the letter of an option by lmms-eval's rule, which takes "DNA test" for A and "C. text" for C."""
    return _staged_letter(answer, options, (_in_brackets, _before_space, _before_period))


def _staged_letter(
    answer: str, options: Mapping[str, str], stages: Sequence[Callable[[str], tuple[str, str]]]
) -> str | None:
    """Look for letters in one form after the other, then for texts; of several the last in the answer counts."""
    for mark in _ENDS:
        answer = answer.strip(mark)
    text = f" {answer} "
    for stage in stages:
        found = {letter: stage(letter) for letter in options}
        candidates = [letter for letter, (form, _) in found.items() if form in text]
        if candidates:
            return max(candidates, key=lambda letter: text.rfind(found[letter][1]))
    if len(text.split()) <= _MANY_WORDS:
        return None
    lowered = text.lower()
    named = [letter for letter, option in options.items() if option.lower() in lowered]
    return max(named, key=lambda letter: lowered.rfind(options[letter].lower())) if named else None


def _in_brackets(letter: str) -> tuple[str, str]:
    """Return the form that makes a letter a candidate, and the one whose last place decides between candidates."""
    return f"({letter})", f"({letter})"


def _between_spaces(letter: str) -> tuple[str, str]:
    return f" {letter} ", f" {letter} "


def _before_space(letter: str) -> tuple[str, str]:
    return f"{letter} ", f" {letter} "


def _before_period(letter: str) -> tuple[str, str]:
    return f"{letter}.", f" {letter} "


def guess(letters: Sequence[str]) -> str:
    """Return the letter that upstream's fallback draws, seeded afresh for each question."""
    return random.Random(_GUESS_SEED).choice(letters)


_INFER_BLANKS = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
_ANSWER_IS = re.compile(r"(?:correct )?answer is\s*\**\s*([A-D])", re.IGNORECASE)
_LAST_WORDS = 5
_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)


def infer_choice(answer: str, options: Mapping[str, str]) -> str | None:
    """Read the letter of an option by VLMEvalKit's rule; Z is its letter for a refusal.

    Args:
        answer: The answer as given.
        options: Texts by letter.
    """
    if any(sentence in answer for sentence in _REFUSALS):
        return "Z"
    words = answer.translate(_INFER_BLANKS).split()
    named = [letter for letter in options if letter in words]
    if len(named) == 1 and words.index(named[0]) > len(words) - _LAST_WORDS:
        return named[0]
    if not named and "Z" in words:
        return "Z"
    stated = _ANSWER_IS.search(answer)
    if stated is not None and stated[1].upper() in options:
        return stated[1].upper()
    lowered = answer.lower()
    texts = {letter: option.lower() for letter, option in options.items()}
    if len(lowered) > 2 * sum(map(len, texts.values())):
        return None
    contained = [letter for letter, option in texts.items() if option in lowered]
    return contained[0] if len(contained) == 1 else None


_INDICATORS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_MARKS = {":", ",", ".", "!", "?", ";", "'"}
_NUMBERS = (
    re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b"),
    re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+"),
    re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])"),
)


def open_readings(answer: str) -> list[Reading]:
    """Return what a free answer may mean by MMMU's own rule, in a fixed order, without repeats.

    The tail after a phrase like "answer is" counts, piece by piece, else the whole answer; and every number in it.
    """
    text = answer.strip().strip(".").lower()
    pieces = text.split("\n")
    last = len(pieces) - 1
    tails = [_shortest_tail(piece, (*_INDICATORS, *(("=",) if n == last else ()))) for n, piece in enumerate(pieces)]
    kept = [tail for tail in tails if tail and tail not in _MARKS] or [text]
    numbers = [number for tail in kept for number in _numbers(tail)]
    return list(dict.fromkeys(reading for found in (*kept, *numbers) for reading in _normalised(found)))


def matches_open(readings: Iterable[Reading], gold: Sequence[str]) -> bool:
    """Tell whether a reading is right: a number equal to a gold one, or a text that contains a gold text.

    Args:
        readings: What `open_readings` returned.
        gold: Every accepted answer.
    """
    accepted = [reading for answer in gold for reading in _normalised(answer)]
    texts = [reading for reading in accepted if isinstance(reading, str)]
    return any(
        any(text in reading for text in texts) if isinstance(reading, str) else reading in accepted
        for reading in readings
    )


def _shortest_tail(piece: str, indicators: Iterable[str]) -> str:
    tail = ""
    for indicator in indicators:
        if indicator in piece:
            found = piece.rpartition(indicator)[2].strip()
            if not tail or len(found) < len(tail):
                tail = found
    return tail


def _numbers(text: str) -> list[str]:
    return [number for pattern in _NUMBERS for number in pattern.findall(text)]


def _normalised(text: str) -> list[Reading]:
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        pass
    text = text.lower()
    # A single letter must stand apart, or it would be found within every word.
    return [f" {text}", f"{text} "] if len(text) == 1 else [text]
