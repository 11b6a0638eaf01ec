"""Compare two runs item by item: is the difference larger than chance?

Both runs were asked the same items, so what counts is how they differ on each. The clusters that items
share are resampled in both runs alike; a difference whose 95% interval holds 0 is not distinguishable.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from segros_eval.benchmarks.base import Result, Score
from segros_eval.pipeline.store import read_result, read_scores
from segros_eval.reporting.paired import paired_headlines
from segros_eval.reporting.table import MISSING, Head, Sheet, SheetCell, SheetRow, interval_text, number
from segros_eval.statistics.bootstrap import Aggregate, Difference, macro_mean, paired_difference, pooled_mean
from segros_train.errors import PrerequisiteError

__all__ = ["Comparison", "Contrast", "compare_runs", "comparison_sheets"]

ROUNDING = 1e-6
ITEM_MEAN = "mean over items"


@dataclass(frozen=True)
class Contrast:
    """One metric of two runs on the same items.

    Attributes:
        evaluator: Name of the evaluation.
        metric: What is compared: the headline, the mean over items where that is no mean, or a group's mean.
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
        start = f"difference {_signed(self.difference.estimate)}"
        if self.difference.interval is None:
            return f"{start}: too few clusters to tell"
        words = {True: "A is higher" if self.difference.estimate > 0 else "B is higher", False: "not distinguishable"}
        return f"{start} {interval_text(self.difference.interval)}: {words[bool(self.distinguishable)]} at 95%"


@dataclass(frozen=True)
class Comparison:
    """Two runs, every evaluation both have: the headline first, then its groups.

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


def compare_runs(a: Path, b: Path) -> Comparison:
    """Compare two run folders on the items that both have scored.

    Args:
        a: Run folder A.
        b: Run folder B.

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
        mismatch = _mismatch(*results)
        if mismatch:
            notes.append(f"{evaluator}: {mismatch}")
            continue
        scores = [read_scores(run / "evals" / evaluator / "scores.jsonl") for run in (a, b)]
        try:
            contrasts.extend(_contrasts(results[0], scores[0], scores[1]))
        except ValueError as error:
            notes.append(f"{evaluator}: {error}")
    if not contrasts:
        raise PrerequisiteError(f"{a} and {b} cannot be compared. {' '.join(notes)}")
    return Comparison(a=a.name, b=b.name, contrasts=tuple(contrasts), notes=tuple(notes))


def comparison_sheets(comparison: Comparison) -> tuple[Sheet, ...]:
    """Return a comparison as one sheet.

    Args:
        comparison: What to show.
    """
    heads = (
        "Evaluator",
        "Metric",
        "A − B",
        "Items",
        "Left out",
        "Only A right",
        "Only B right",
        "McNemar p",
        "Verdict",
    )
    rows = tuple(SheetRow("plain", _cells(contrast)) for contrast in comparison.contrasts)
    estimators = {item.difference.interval.estimator for item in comparison.contrasts if item.difference.interval}
    notes = (
        f"A: `{comparison.a}`. B: `{comparison.b}`. Differences in points, on the items both runs have scored.",
        *(f"Brackets: 95% interval ({estimator})." for estimator in sorted(estimators)),
        "McNemar's test takes items for independent; where several share a prompt, trust the interval.",
        *comparison.notes,
    )
    sheet_heads = tuple(Head(head, numeric=1 < i < 8) for i, head in enumerate(heads))
    return (Sheet("comparison", "comparison", "Paired comparison", "", sheet_heads, rows, notes),)


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


def _contrasts(result: Result, a: Sequence[Score], b: Sequence[Score]) -> list[Contrast]:
    name, aggregate = _headline(result, a)
    unit = _unit(result)
    whole = paired_difference(a, b, aggregate=aggregate, stratified=_nested(a), unit=unit)
    others = paired_headlines(result, a, b)
    found = [Contrast(result.evaluator, metric, difference) for metric, difference in others.items()]
    found.insert(1 if result.headline in others else 0, Contrast(result.evaluator, name, whole))
    groups = list(dict.fromkeys(score.group for score in a if score.group))
    if len(groups) < 2:
        return found
    for group in groups:
        of_a, of_b = ([score for score in scores if score.group == group] for scores in (a, b))
        if _share_scored(of_a, of_b):
            found.append(Contrast(result.evaluator, group, paired_difference(of_a, of_b, unit=unit)))
    return found


def _nested(scores: Sequence[Score]) -> bool:
    """Tell whether no cluster lies in two groups, so that groups can be resampled apart."""
    pairs = {(score.cluster_id, score.group) for score in scores}
    return len(pairs) == len({cluster for cluster, _ in pairs})


def _unit(result: Result) -> str:
    """Return what the evaluator's own intervals call a cluster."""
    estimators = [interval.estimator for interval in result.intervals.values() if "-clustered" in interval.estimator]
    return estimators[0].partition("-clustered")[0] if estimators else "cluster"


def _headline(result: Result, scores: Sequence[Score]) -> tuple[str, Aggregate]:
    """Return the mean that reproduces the run's headline; the mean over items where none does (an F1, a total)."""
    printed = result.metrics[result.headline]
    groups: dict[str, list[float]] = {}
    for score in scores:
        if score.value is not None:
            groups.setdefault(score.group, []).append(100 * score.value)
    if printed is None or not groups:
        return ITEM_MEAN, pooled_mean
    if abs(fmean(map(fmean, groups.values())) - printed) < ROUNDING:
        return result.headline, macro_mean
    pooled = fmean(value for values in groups.values() for value in values)
    return (result.headline if abs(pooled - printed) < ROUNDING else ITEM_MEAN), pooled_mean


def _share_scored(a: Sequence[Score], b: Sequence[Score]) -> bool:
    scored = [{score.item_id for score in scores if score.value is not None} for scores in (a, b)]
    return bool(scored[0] & scored[1])


def _cells(contrast: Contrast) -> tuple[SheetCell, ...]:
    difference = contrast.difference
    detail = interval_text(difference.interval) if difference.interval else ""
    tone = {True: "good" if difference.estimate > 0 else "bad"}.get(bool(contrast.distinguishable), "")
    counts = (difference.num_items, difference.num_left_out, difference.only_a, difference.only_b)
    p = MISSING if difference.mcnemar_p is None else f"{difference.mcnemar_p:.3g}"
    return (
        SheetCell(contrast.evaluator),
        SheetCell(contrast.metric),
        SheetCell(_signed(difference.estimate), detail, sort=difference.estimate),
        *(SheetCell(MISSING if count is None else str(count), sort=count) for count in counts),
        SheetCell(p, sort=difference.mcnemar_p),
        SheetCell(contrast.verdict, tone=tone),
    )


def _signed(value: float) -> str:
    return number(value).replace("-", "−")
