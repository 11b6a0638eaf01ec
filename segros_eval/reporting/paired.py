"""Paired differences of numbers that are no means of items: MME's sums and POPE's F1.

Both runs are resampled with the same draws of pictures, on the questions both have scored.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from segros_eval.benchmarks.base import Interval, Result, Score
from segros_eval.benchmarks.vqa.mme import MME, picture_scores
from segros_eval.benchmarks.vqa.pope import POPE, f1_of, outcomes_by_picture
from segros_eval.statistics.bootstrap import REPLICATES, Difference, macro_mean, paired_difference
from segros_eval.statistics.clustered import bootstrap_counts, scaled

__all__ = ["paired_headlines"]


def paired_headlines(result: Result, a: Sequence[Score], b: Sequence[Score]) -> dict[str, Difference]:
    """Return the differences of a result's metrics that no mean of items reproduces, by metric; A minus B.

    Args:
        result: Run A's result, for its evaluator.
        a: Scores of run A.
        b: Scores of run B.
    """
    declared = result.provenance.get("evaluator")
    kind = declared.get("type") if isinstance(declared, Mapping) else None
    scored = [{score.item_id for score in scores if score.value is not None} for scores in (a, b)]
    shared = scored[0] & scored[1]
    both = [[score for score in scores if score.item_id in shared] for scores in (a, b)]
    left_out = len({score.item_id for score in (*a, *b)}) - len(shared)
    if not shared or declared is None:
        return {}
    if kind == MME.__name__:
        return _sums(both[0], both[1], left_out)
    if kind == POPE.__name__:
        return _f1(both[0], both[1], left_out, str(declared.get("rules", "standard")))
    return {}


def _sums(a: Sequence[Score], b: Sequence[Score], left_out: int) -> dict[str, Difference]:
    found = {}
    for total in ("perception", "cognition"):
        units = [picture_scores(scores, total) for scores in (a, b)]
        if not units[0] or {one.item_id for one in units[0]} != {one.item_id for one in units[1]}:
            continue
        points = 2.0 * len({one.group for one in units[0]})
        share = paired_difference(units[0], units[1], aggregate=macro_mean, unit="image")
        found[total] = replace(
            share,
            estimate=points * share.estimate,
            interval=None if share.interval is None else scaled(share.interval, points),
            num_items=len(units[0]),
            num_left_out=left_out,
            only_a=None,
            only_b=None,
            mcnemar_p=None,
        )
    return found


def _f1(a: Sequence[Score], b: Sequence[Score], left_out: int, reading: str) -> dict[str, Difference]:
    runs = {"a": outcomes_by_picture(a, reading), "b": outcomes_by_picture(b, reading)}
    counts: dict[str, dict[str, float]] = {}
    for run, pictures in runs.items():
        for picture, outcomes in pictures.items():
            row = counts.setdefault(picture, {})
            row |= {_tagged(name, run): float(number) for name, number in outcomes.items()}
    names = {name for row in counts.values() for name in row}
    totals = {name: np.array([sum(row.get(name, 0.0) for row in counts.values())]) for name in names}
    estimate = 100 * float((f1_of(_of_run(totals, "a"), reading) - f1_of(_of_run(totals, "b"), reading))[0])
    if not math.isfinite(estimate):
        return {}
    interval = None
    drawn = bootstrap_counts(counts)
    if drawn:
        values = 100 * (f1_of(_of_run(drawn, "a"), reading) - f1_of(_of_run(drawn, "b"), reading))
        low, high = np.nanpercentile(values, (2.5, 97.5))
        interval = Interval(float(low), float(high), f"paired image-clustered bootstrap, {REPLICATES} replicates")
    return {"f1": Difference(estimate, interval, num_items=len(a), num_left_out=left_out)}


def _tagged(name: str, run: str) -> str:
    """Put a run's name behind the split, which tells pictures of one kind apart."""
    split, _, rest = name.partition("/")
    return f"{split}/{run}/{rest}"


def _of_run(counts: Mapping[str, Any], run: str) -> dict[str, Any]:
    return {name.replace(f"/{run}/", "/", 1): value for name, value in counts.items() if f"/{run}/" in name}
