"""The rules of GenEval: from raw detections to correct or not, with the official reason.

An image is judged against a list of clauses (`include`) and a list of classes that must not be too
many (`exclude`). Detections are first thinned class by class (`keep`); a clause then needs `count`
kept instances, of the right colour, in the right relation to an earlier clause. Arithmetic on boxes
and scores is float32, as in the official script: a score of float32(0.3) does not exceed 0.3.

Source: djghosh13/geneval@af4902f, evaluation/evaluate_images.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segros_eval.benchmarks.base import Detection

__all__ = [
    "COLORS",
    "OBJECT_NAMES",
    "ColorNamer",
    "Kept",
    "Verdict",
    "box_iou",
    "color_questions",
    "evaluate",
    "keep",
    "relative_position",
]

COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")

OBJECT_NAMES = tuple(
    (
        "person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign, "
        "parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella, "
        "handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, "
        "skateboard, surfboard, tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, "
        "sandwich, orange, broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, "
        "dining table, toilet, tv, laptop, computer mouse, tv remote, computer keyboard, cell phone, microwave, oven, "
        "toaster, sink, refrigerator, book, clock, vase, scissors, teddy bear, hair drier, toothbrush"
    ).split(", ")
)

Kept = Mapping[str, Sequence[Detection]]
"""Kept instances by class, best first; classes without one are absent."""

ColorNamer = Callable[[Sequence[Detection]], Sequence[str]]
"""Name the colour of each instance."""


@dataclass(frozen=True)
class Verdict:
    """The judgement of one image.

    Attributes:
        correct: Whether every clause holds.
        reason: The official text, one line per failure; empty when correct.
        colors: What was asked of the colour classifier, in order: class and the colours named.
    """

    correct: bool
    reason: str
    colors: tuple[tuple[str, tuple[str, ...]], ...]


def keep(detections: Sequence[Detection], *, threshold: float, max_objects: int, max_overlap: float) -> Kept:
    """Thin raw detections class by class: the best `max_objects` above the threshold, then overlap suppression.

    Args:
        detections: Raw detections in any order.
        threshold: Scores must exceed it, compared in float32.
        max_objects: Most instances of a class.
        max_overlap: An instance stays when its IoU with every better kept one is below this; 1.0 switches it off.

    Returns:
        Instances with scores and boxes rounded to float32, classes in the benchmark's order, others after them.
    """
    by_class: dict[str, list[Detection]] = {}
    for detection in detections:
        by_class.setdefault(detection.label, []).append(_as_float32(detection))
    kept = {}
    for label in sorted(by_class, key=_class_order):
        candidates = _best(by_class[label], np.float32(threshold))[:max_objects]
        if candidates:
            kept[label] = candidates if max_overlap == 1.0 else _suppressed(candidates, np.float32(max_overlap))
    return kept


def box_iou(a: Sequence[float], b: Sequence[float]) -> float:
    """Return the intersection over union of two boxes, whose far edges count as inside (the "+1 pixel" convention).

    Args:
        a: x0, y0, x1, y1 in pixels.
        b: The same of the other box.
    """
    first, second = _box(a), _box(b)
    shared = _area(np.concatenate([np.maximum(first[:2], second[:2]), np.minimum(first[2:], second[2:])]))
    union = _area(first) + _area(second) - shared
    return float(shared / union) if union else 0.0


def relative_position(a: Sequence[float], b: Sequence[float], *, threshold: float) -> frozenset[str]:
    """Say where box `a` lies as seen from box `b`: none, one or two of left of, right of, above, below.

    The offset of the centres counts only as far as it exceeds `threshold` times the summed sizes, axis by axis;
    a direction holds when that rest is over half the length of the whole offset.

    Args:
        a: x0, y0, x1, y1 of the object in pixels.
        b: The same of the target.
        threshold: Share of the summed sizes that does not count.
    """
    corners_a, corners_b = _box(a).reshape(2, 2), _box(b).reshape(2, 2)
    offset = corners_a.mean(axis=0) - corners_b.mean(axis=0)
    sizes = np.abs(corners_a[1] - corners_a[0]) + np.abs(corners_b[1] - corners_b[0])
    rest = np.maximum(np.abs(offset) - np.float32(threshold) * sizes, np.float32(0)) * np.sign(offset)
    if (np.abs(rest) < np.float32(1e-3)).all():
        return frozenset()
    dx, dy = rest / np.linalg.norm(offset)
    directions = {"left of": dx < -0.5, "right of": dx > 0.5, "above": dy < -0.5, "below": dy > 0.5}
    return frozenset(name for name, holds in directions.items() if holds)


def evaluate(metadata: Mapping[str, Any], kept: Kept, name_colors: ColorNamer, *, position_threshold: float) -> Verdict:
    """Judge an image by its kept instances.

    Every clause is checked even after a failure, so that the reason is complete; within a clause the first
    failure of count, colour and position ends it, and a later clause that refers to it has no target.

    Args:
        metadata: The prompt's record in the official schema (`include`, `exclude`).
        kept: Result of `keep`.
        name_colors: Asked once per clause with a colour, about the `count` best instances only.
        position_threshold: See `relative_position`.
    """
    asked: list[tuple[str, tuple[str, ...]]] = []
    failures: list[str] = []
    matched: list[Sequence[Detection] | None] = []
    for clause in metadata.get("include", ()):
        found = kept.get(clause["class"], ())[: clause["count"]]
        failure = _count_failure(clause, found)
        if not failure and "color" in clause:
            colors = tuple(name_colors(found))
            asked.append((clause["class"], colors))
            failure = _color_failure(clause, colors)
        if not failure and "position" in clause:
            failure = _position_failure(clause, found, matched, position_threshold)
        failures += [failure] if failure else []
        matched.append(None if failure else found)
    for clause in metadata.get("exclude", ()):
        num_kept = len(kept.get(clause["class"], ()))
        if num_kept >= clause["count"]:
            failures.append(f"expected {clause['class']}<{clause['count']}, found {num_kept}")
    return Verdict(correct=not failures, reason="\n".join(failures), colors=tuple(asked))


def color_questions(metadata: Mapping[str, Any], kept: Kept) -> list[Sequence[Detection]]:
    """Return the instances whose colours `evaluate` will ask for, clause by clause; no colour decides what is asked.

    Args:
        metadata: The prompt's record in the official schema.
        kept: Result of `keep`.
    """
    clauses = [(clause, kept.get(clause["class"], ())[: clause["count"]]) for clause in metadata.get("include", ())]
    return [found for clause, found in clauses if "color" in clause and not _count_failure(clause, found)]


def _count_failure(clause: Mapping[str, Any], found: Sequence[Detection]) -> str:
    if len(found) >= clause["count"]:
        return ""
    return f"expected {clause['class']}>={clause['count']}, found {len(found)}"


def _color_failure(clause: Mapping[str, Any], colors: Sequence[str]) -> str:
    color, count = clause["color"], clause["count"]
    num_right = colors.count(color)
    if num_right >= count:
        return ""
    seen = ", ".join(f"{colors.count(name)} {name}" for name in COLORS if name in colors)
    return f"expected {color} {clause['class']}>={count}, found {num_right} {color}; and {seen}"


def _position_failure(
    clause: Mapping[str, Any],
    found: Sequence[Detection],
    matched: Sequence[Sequence[Detection] | None],
    threshold: float,
) -> str:
    expected, target_index = clause["position"]
    targets = matched[target_index]
    if targets is None:
        return f"no target for {clause['class']} to be {expected}"
    for detection in found:
        for target in targets:
            relations = relative_position(detection.box, target.box, threshold=threshold)
            if expected not in relations:
                # The official text joins a set, in no fixed order; sorted, it is always the same.
                text = " and ".join(sorted(relations))
                return f"expected {clause['class']} {expected} target, found {text} target"
    return ""


def _best(detections: Sequence[Detection], threshold: np.float32) -> list[Detection]:
    scores = np.array([detection.score for detection in detections], dtype=np.float32)
    # Reversed ascending order, as upstream: of equal scores the later detection comes first.
    order = np.argsort(scores, kind="stable")[::-1]
    return [detections[index] for index in order if scores[index] > threshold]


def _suppressed(candidates: Sequence[Detection], max_overlap: np.float32) -> list[Detection]:
    kept: list[Detection] = []
    for candidate in candidates:
        if all(np.float32(box_iou(better.box, candidate.box)) < max_overlap for better in kept):
            kept.append(candidate)
    return kept


def _class_order(label: str) -> tuple[int, str]:
    return (OBJECT_NAMES.index(label) if label in OBJECT_NAMES else len(OBJECT_NAMES), label)


def _as_float32(detection: Detection) -> Detection:
    x0, y0, x1, y1 = (float(value) for value in _box(detection.box))
    return replace(detection, box=(x0, y0, x1, y1), score=float(np.float32(detection.score)))


def _box(box: Sequence[float]) -> NDArray[np.float32]:
    return np.asarray(box, dtype=np.float32)


def _area(box: NDArray[np.float32]) -> np.float32:
    width, height = np.maximum(box[2:] - box[:2] + np.float32(1), np.float32(0))
    return width * height
