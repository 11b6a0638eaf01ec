"""Compare two runs item by item: is the difference larger than chance?

Both runs were asked the same items, so what counts is how they differ on each. The clusters that items
share are resampled in both runs alike; a difference whose 95% interval holds 0 is not distinguishable.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segros_eval.benchmarks.base import EvalTask, Metric, Result
from segros_eval.benchmarks.lmms_eval import PREFIX, harness_task
from segros_eval.pipeline.store import read_result, read_scores
from segros_eval.reporting.table import MISSING, Cell, Table, interval_text, make_table, number, signed
from segros_eval.statistics.paired import Difference, paired_differences
from segros_train.errors import PrerequisiteError

__all__ = ["Comparison", "Contrast", "compare_runs", "comparison_table"]


@dataclass(frozen=True)
class Contrast:
    """One metric of two runs on the same items.

    Attributes:
        evaluator: Name of the evaluation.
        metric: What is compared.
        difference: A minus B.
    """

    evaluator: str
    metric: str
    difference: Difference

    @property
    def distinguishable(self) -> bool | None:
        """Whether the interval leaves out 0; None where there are too few clusters to tell."""
        interval = self.difference.interval
        return None if interval is None else not interval.low <= 0 <= interval.high

    @property
    def verdict(self) -> str:
        """Say in one sentence what the difference is worth."""
        start = f"difference {signed(number(self.difference.estimate))}"
        if self.difference.interval is None:
            return f"{start}: too few clusters to tell"
        words = {True: "A is higher" if self.difference.estimate > 0 else "B is higher", False: "not distinguishable"}
        return f"{start} {interval_text(self.difference.interval)}: {words[bool(self.distinguishable)]} at 95%"


@dataclass(frozen=True)
class Comparison:
    """Two runs, every evaluation both have: the headline first.

    Attributes:
        a: Name of run A.
        b: Name of run B.
        contrasts: What was compared.
        notes: What could not be compared, and why.
    """

    a: str
    b: str
    contrasts: tuple[Contrast, ...]
    notes: tuple[str, ...] = ()


def compare_runs(a: Path, b: Path, evaluators: Mapping[str, EvalTask]) -> Comparison:
    """Compare two run folders on the items that both have scored.

    Args:
        a: Run folder A.
        b: Run folder B.
        evaluators: Declared evaluations by name, for their metrics.

    Raises:
        PrerequisiteError: If they have no evaluation in common that can be compared.
    """
    shared = sorted(_evaluations(a) & _evaluations(b))
    if not shared:
        raise PrerequisiteError(
            f"{a} and {b} share no evaluation: A has {_listed(_evaluations(a))}, B has {_listed(_evaluations(b))}. "
            "Evaluate both with the same --eval."
        )
    contrasts: list[Contrast] = []
    notes: list[str] = []
    for evaluator in shared:
        results = [read_result(run / "evals" / evaluator / "result.json") for run in (a, b)]
        metrics = _metrics(results[0], evaluators)
        mismatch = _mismatch(*results) or ("" if metrics else "no declared evaluation of this name and kind.")
        if mismatch:
            notes.append(f"{evaluator}: {mismatch}")
            continue
        scores = [read_scores(run / "evals" / evaluator / "scores.jsonl") for run in (a, b)]
        try:
            found = paired_differences(metrics, *scores)
        except ValueError as error:
            notes.append(f"{evaluator}: {error}")
            continue
        contrasts += [
            Contrast(evaluator, metric.name, found[metric.name]) for metric in metrics if metric.name in found
        ]
        if metrics[0].name not in found:
            notes.append(f"{evaluator}: {metrics[0].name} has no value on the items that both have scored.")
    if not contrasts:
        raise PrerequisiteError(f"{a} and {b} cannot be compared. {' '.join(notes)}")
    return Comparison(a=a.name, b=b.name, contrasts=tuple(contrasts), notes=tuple(notes))


def _metrics(result: Result, evaluators: Mapping[str, EvalTask]) -> tuple[Metric, ...]:
    """Return the metrics of the evaluation that made a result, under the options it was made with."""
    if result.evaluator.startswith(PREFIX):
        return harness_task(result.evaluator).evaluator.metrics
    task = evaluators.get(result.evaluator)
    made: Mapping[str, Any] = result.provenance.get("evaluator") or {}
    if task is None or made.get("type", type(task.evaluator).__name__) != type(task.evaluator).__name__:
        return ()
    evaluator: Any = task.evaluator
    fields = {field.name for field in dataclasses.fields(evaluator)}
    options = {name: tuple(value) if isinstance(value, list) else value for name, value in made.items()}
    changed = {name: value for name, value in options.items() if name in fields}
    return dataclasses.replace(evaluator, **changed).metrics


def comparison_table(comparison: Comparison) -> Table:
    """Return a comparison as a table.

    Args:
        comparison: What to show.
    """
    numbers = ("A − B", "Items", "Left out", "Only A right", "Only B right", "McNemar p")
    estimators = {item.difference.interval.estimator for item in comparison.contrasts if item.difference.interval}
    notes = (
        f"A: `{comparison.a}`. B: `{comparison.b}`. Differences on the items both runs have scored.",
        *(f"Brackets: 95% interval ({estimator})." for estimator in sorted(estimators)),
        "McNemar's test takes items for independent; where several share a prompt, trust the interval.",
        *comparison.notes,
    )
    heads = ("Evaluator", "Metric", *numbers, "Verdict")
    rows = map(_cells, comparison.contrasts)
    return make_table("comparison", "Paired comparison", heads, rows, numeric=numbers, notes=notes)


def _evaluations(run: Path) -> set[str]:
    if not run.is_dir():
        raise PrerequisiteError(f"{run} is no run folder. Name one below runs/, e.g. with `ls runs`.")
    return {path.parent.name for path in run.glob("evals/*/result.json")}


def _listed(names: set[str]) -> str:
    return ", ".join(sorted(names)) or "none"


def _mismatch(a: Result, b: Result) -> str:
    for what, left, right in (("world", a.world, b.world), ("protocol", a.protocol, b.protocol)):
        if left != right:
            return f"A has {what} {left}, B {right}: not comparable."
    return ""


def _cells(contrast: Contrast) -> tuple[Cell, ...]:
    difference = contrast.difference
    detail = interval_text(difference.interval) if difference.interval else ""
    tone = {True: "good" if difference.estimate > 0 else "bad"}.get(bool(contrast.distinguishable), "")
    counts = (difference.num_items, difference.num_left_out, difference.only_a, difference.only_b)
    p = MISSING if difference.mcnemar_p is None else f"{difference.mcnemar_p:.3g}"
    return (
        Cell(contrast.evaluator),
        Cell(contrast.metric),
        Cell(signed(number(difference.estimate)), detail, sort=difference.estimate),
        *(Cell(MISSING if count is None else str(count), sort=count) for count in counts),
        Cell(p, sort=difference.mcnemar_p),
        Cell(contrast.verdict, tone=tone),
    )
