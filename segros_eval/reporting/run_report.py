"""One page per run: what was run, what came out, what failed and what it looks like."""

from __future__ import annotations

import base64
import io
import json
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from segros_eval.benchmarks.base import Result, Score
from segros_eval.benchmarks.images import UnreadableImageError, read_image
from segros_eval.pipeline.items import NUM_TILES
from segros_eval.pipeline.store import read_result, read_scores
from segros_eval.reporting.compare import Comparison, compare_runs, comparison_table
from segros_eval.reporting.html import Curve, Facts, Tiles, render_page
from segros_eval.reporting.layout import value_cell
from segros_eval.reporting.markdown import render_markdown, table_markdown
from segros_eval.reporting.rows import Value
from segros_eval.reporting.table import Cell, Table, interval_text, make_table, number
from segros_train.errors import PrerequisiteError
from segros_train.files import read_jsonl

__all__ = ["Comparison", "compare_runs", "render_comparison", "render_report"]

ITEMS = "items.jsonl"
TILE_PX = 160
NUM_REASONS = 20
LONGEST_FACT = 400


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of a run: its result, its scores, and what was asked, by item id."""

    result: Result
    scores: tuple[Score, ...]
    items: Mapping[str, Mapping[str, Any]]


def render_comparison(comparison: Comparison, *, fmt: Literal["md", "html"] = "md") -> str:
    """Return a comparison of two runs as Markdown or as a page.

    Args:
        comparison: What to show.
        fmt: Format of the text.
    """
    table = comparison_table(comparison)
    headline = comparison.contrasts[0]
    lead = f"{headline.evaluator} {headline.metric}: {headline.verdict}."
    if fmt == "md":
        return f"{lead}\n\n{render_markdown([table])}"
    return render_page(f"{comparison.a} against {comparison.b}", lead=lead, parts=[table])


def render_report(run: Path, *, fmt: Literal["html", "md"] = "html") -> str:
    """Return the report of one run; pictures and the training curve are in the HTML page alone.

    Args:
        run: Run folder.
        fmt: Format of the text.

    Raises:
        PrerequisiteError: If the folder is no run folder, or a file in it is damaged.
    """
    plan = _plan(run)
    evaluations = [_evaluation(path.parent) for path in sorted(run.glob("evals/*/result.json"))]
    tables = [table for one in evaluations for table in _tables(one)]
    settings = _facts(plan)
    lead = " ".join(_headline(one.result) for one in evaluations) or "No evaluation has finished in this run yet."
    if fmt == "md":
        lines = "\n".join(f"- {name}: `{value}`" for name, value in settings.items())
        texts = [f"# {run.name}", lead, *map(table_markdown, tables), f"## Settings\n\n{lines}"]
        return "\n\n".join(texts) + "\n"
    parts: list[Table | Facts | Tiles | Curve] = [*tables, *_pictures(run, evaluations), *_training(run)]
    for one in evaluations:
        facts = {"key": one.result.key, **_facts(one.result.provenance)}
        name = one.result.evaluator
        parts.append(Facts(f"{name}-provenance", f"{name}: provenance", facts))
    return render_page(run.name, lead=lead, parts=[*parts, Facts("settings", "Settings", settings)])


def _plan(run: Path) -> Mapping[str, Any]:
    path = run / "plan.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PrerequisiteError(f"{run} is no run folder: {path.name} cannot be read ({error.strerror}).") from error
    except ValueError as error:
        raise PrerequisiteError(f"{path} is damaged: {error}. Run `segros run` with the same options again.") from error


def _evaluation(folder: Path) -> Evaluation:
    items = (entry for entry in read_jsonl(folder / ITEMS) if isinstance(entry, dict) and "item_id" in entry)
    return Evaluation(
        result=read_result(folder / "result.json"),
        scores=tuple(read_scores(folder / "scores.jsonl")),
        items={entry["item_id"]: entry for entry in items},
    )


def _headline(result: Result) -> str:
    value, interval = result.metrics[result.headline], result.intervals.get(result.headline)
    shown = "unscored" if value is None else number(value)
    reach = f" {interval_text(interval)}" if interval and value is not None else ""
    total = result.num_samples + result.num_unscored
    world = f"world {result.world}, {result.num_samples} of {total} items scored"
    subset = ", only part of the benchmark" if result.provenance.get("subset") else ""
    return f"{result.evaluator} {result.headline} {shown}{reach} ({world}{subset})."


def _tables(one: Evaluation) -> Iterator[Table]:
    result = one.result
    rows = []
    for metric, value in result.metrics.items():
        interval = result.intervals.get(metric)
        cell = value_cell(Value(value, unscored=value is None))
        rows.append((metric, cell, *((interval_text(interval), interval.estimator) if interval else ("–", "–"))))
    heads = ("Metric", "Value", "95% interval", "Estimator")
    counts = f"{result.num_samples} scored, {result.num_unparsed} unparsed, {result.num_unscored} unscored items."
    notes = (counts, f"Protocol `{result.protocol}`, world `{result.world}`, seeds {list(result.seeds)}.")
    name = result.evaluator
    yield make_table(f"{name}-metrics", f"{name}: metrics", heads, rows, numeric=heads[1:3], notes=notes)
    yield from _failures(one)


def _failures(one: Evaluation) -> Iterator[Table]:
    """Count what failed by kind, group and reason, most frequent first."""
    wrong = Counter((_state(s), s.group, s.reason or "no reason given") for s in one.scores if _is_wrong(s))
    if not wrong:
        return
    rows = [(Cell(str(n), sort=n), *entry) for entry, n in wrong.most_common(NUM_REASONS)]
    left = len(wrong) - len(rows)
    notes = (f"{left} rarer reasons are left out.",) if left > 0 else ()
    heads = ("Items", "What", "Group", "Reason")
    name = one.result.evaluator
    yield make_table(f"{name}-failures", f"{name}: what failed", heads, rows, numeric=heads[:1], notes=notes)


def _state(score: Score) -> str:
    return "wrong" if score.status == "scored" else score.status


def _is_wrong(score: Score) -> bool:
    return score.value is None or score.value <= 0 or score.status == "unparsed"


def _pictures(run: Path, evaluations: Sequence[Evaluation]) -> Iterator[Tiles]:
    for one in evaluations:
        folder = run / "evals" / one.result.evaluator
        shown = [score for score in one.scores if one.items.get(score.item_id, {}).get("image")]
        if not shown:
            continue
        # A fixed seed: the same run shows the same items, chosen before their scores are looked at.
        drawn = random.Random(0).sample(shown, min(NUM_TILES, len(shown)))
        for title, chosen in (("random items", drawn), ("worst items", _worst(shown))):
            tiles = [_tile(folder, score, one.items[score.item_id]) for score in chosen]
            name = one.result.evaluator
            yield Tiles(f"{name}-{title.split()[0]}", f"{name}: {title}", tiles)


def _worst(scores: Sequence[Score]) -> list[Score]:
    """Return the lowest scored items, in turn from each group, so that no group hides the others."""
    groups: dict[str, list[Score]] = {}
    for score in sorted(scores, key=lambda score: -1.0 if score.value is None else score.value):
        groups.setdefault(score.group, []).append(score)
    deepest = max(map(len, groups.values()))
    turns = [group[i] for i in range(deepest) for group in groups.values() if i < len(group)]
    return [score for score in turns if score.value is None or score.value < 1][:NUM_TILES]


def _tile(folder: Path, score: Score, item: Mapping[str, Any]) -> tuple[str, str]:
    value = "unscored" if score.value is None else number(score.value)
    answer = score.raw.get("answer") if isinstance(score.raw, Mapping) else None
    given = (f"“{answer}”",) if answer is not None else ()
    caption = " · ".join((item["prompt"], *given, value, *((score.reason,) if score.reason else ())))
    return _data_uri(folder / item["image"]), caption


def _data_uri(path: Path) -> str:
    try:
        image = read_image(path)
    except UnreadableImageError:
        # An empty source shows the caption in its place, which names the item and the reason.
        return "data:,"
    image.thumbnail((TILE_PX, TILE_PX))
    stream = io.BytesIO()
    image.save(stream, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"


def _training(run: Path) -> Iterator[Curve]:
    lines = [entry for entry in read_jsonl(run / "train" / "metrics.jsonl") if isinstance(entry, dict)]
    for field, title in (("t2i_loss", "text-to-image loss"), ("i2t_loss", "image-to-text loss")):
        points = [(entry["step"], entry[field]) for entry in lines if entry.get(field) is not None]
        if len(points) > 1:
            xs, ys = zip(*points, strict=True)
            yield Curve(f"training-{field}", f"Training: {title}", xs, ys, "optimizer steps", title)


def _facts(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Flatten nested settings to dotted names."""
    flat: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _facts(value, f"{prefix}{name}.")
        elif value is not None and value != "":
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            flat[f"{prefix}{name}"] = text if len(text) <= LONGEST_FACT else f"{text[:LONGEST_FACT]}…"
    return flat
