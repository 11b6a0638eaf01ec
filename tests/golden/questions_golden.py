"""Goldens of the benchmarks of questions: recorded answers with what upstream's harnesses made of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from segros_eval.benchmarks.base import Evaluator, Sample, Score, Tools

Case = Mapping[str, Any]


def load(folder: Path) -> tuple[list[Case], Mapping[str, Any]]:
    """Return the cases and the aggregates of a set."""
    content = json.loads((folder / "cases.json").read_text(encoding="utf-8"))
    return content["cases"], content.get("aggregate", {})


def asked(cases: Sequence[Case], *, cluster: str, group: str | None = None) -> list[Sample]:
    """Return a sample per case, whose record is the case's.

    Args:
        cases: Cases of a set.
        cluster: Field that names the picture.
        group: Field that names the category.
    """
    return [
        Sample(
            f"{n}",
            str(case["doc"][cluster]),
            "answer",
            case["prompt"],
            metadata={**case["doc"], "group": str(case["doc"][group]) if group else ""},
        )
        for n, case in enumerate(cases)
    ]


def judged(evaluator: Evaluator, samples: Sequence[Sample], cases: Sequence[Case]) -> list[Score]:
    """Return the scores of the recorded answers."""
    return evaluator.score(samples, [case["response"] for case in cases], Tools())


def differing(found: Sequence[Any], expected: Sequence[Any], cases: Sequence[Case]) -> list[tuple[Any, Any, Any]]:
    """Return answer, found and expected of every case that differs; there must be cases."""
    assert cases
    rows = zip(cases, found, expected, strict=True)
    return [(case["response"], mine, theirs) for case, mine, theirs in rows if mine != theirs]
