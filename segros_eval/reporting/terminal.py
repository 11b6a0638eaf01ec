"""Tables on a terminal: the plan before a run, the numbers after it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from segros_eval.benchmarks.base import Result
from segros_eval.pipeline.plan import RunPlan
from segros_eval.pipeline.preflight import GIB, Cost, estimate
from segros_eval.pipeline.runner import Outcome
from segros_eval.reporting.measured import data_of, is_subset
from segros_eval.reporting.published import Column, PublishedRow, Reference
from segros_train.errors import Problem

__all__ = ["show_outcomes", "show_plan", "show_problems", "show_result"]

WORLDS = {"photo": "photographs", "shapes": "the embedded world of shapes"}
MISSING = "–"
WIDE = 1000
"""More characters than any table takes."""


class _Fitted:
    """The first of several tables that is not wider than the terminal, else the last."""

    def __init__(self, *tables: Table) -> None:
        self.tables = tables

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        *wider, narrowest = self.tables
        for table in wider:
            if console.measure(table, options=options.update(max_width=WIDE)).maximum <= options.max_width:
                yield table
                return
        yield narrowest


def show_plan(plan: RunPlan) -> RenderableType:
    """Return a plan as a table: one row per model, with what it takes."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("Method", "Backbone"):
        table.add_column(name, no_wrap=True)
    for name in ("Seed", "Updates", "Micro-steps", "Samples", "Items", "Disk"):
        table.add_column(name, justify="right", no_wrap=True)
    costs = [estimate(stage) for stage in plan.stages]
    for stage, cost in zip(plan.stages, costs, strict=True):
        training = (cost.num_updates, cost.num_micro_steps, cost.num_samples)
        counts = [f"{number:,}" if stage.trains else MISSING for number in training]
        table.add_row(stage.task.name, stage.card.name, str(stage.seed), *counts, _items(cost), _size(cost.disk_bytes))
    cells = [cell.task.name for stage in plan.stages for cell in stage.cells]
    unknown = any(cost.disk_bytes is None for cost in costs)
    disk = ("at least " if unknown else "about ") + _size(sum(cost.disk_bytes or 0 for cost in costs))
    facts = f"Evaluations: {', '.join(dict.fromkeys(cells)) or 'none'}. "
    facts += f"{_counted(len(plan.stages), 'model')}, {_counted(len(cells), 'cell')}, {disk} on disk."
    for name in dict.fromkeys(stage.latents for stage in plan.stages if stage.latents):
        facts += f" Images are read from the latent cache {name}."
    if any(None in cost.num_responses for cost in costs):
        facts += " Items marked ? need data that is missing."
    return Group(table, Text(facts, style="dim"))


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _items(cost: Cost) -> str:
    known = sum(count for count in cost.num_responses if count is not None)
    if None not in cost.num_responses:
        return f"{known:,}" if cost.num_responses else MISSING
    return f"{known:,} + ?" if known else "?"


def _size(num_bytes: int | None) -> str:
    if num_bytes is None:
        return "?"
    return f"{num_bytes / GIB:.1f} GiB" if num_bytes >= GIB / 10 else f"{num_bytes / 2**20:.0f} MiB"


def show_problems(problems: Sequence[Problem]) -> RenderableType:
    """Return what is missing as a list, each with its remedy."""
    lines = [Text(f"Missing ({len(problems)}):", style="bold")]
    for problem in problems:
        lines.append(Text.assemble(("• ", "bold red"), problem.what))
        if problem.remedy:
            lines.append(Text(f"  {problem.remedy}", style="dim"))
    return Text("\n").join(lines)


def show_outcomes(outcomes: Sequence[Outcome], reference: Reference) -> RenderableType:
    """Return the numbers, one table per evaluation and world, in the structure of the paper."""
    parts: list[RenderableType] = []
    scored = [outcome for outcome in outcomes if outcome.result is not None]
    groups = dict.fromkeys((outcome.result.evaluator, outcome.result.world) for outcome in scored if outcome.result)
    for evaluator, world in groups:
        group = [
            outcome
            for outcome in scored
            if outcome.result and (outcome.result.evaluator, outcome.result.world) == (evaluator, world)
        ]
        parts += [_results_tables(group, reference), *_notes([one.result for one in group if one.result])]
    failed = [outcome for outcome in outcomes if outcome.failure]
    for outcome in failed:
        what = f"{outcome.stage.folder}, {outcome.cell.task.name}" if outcome.cell else outcome.stage.folder
        parts.append(Text.assemble(("failed  ", "bold red"), f"{what}: {outcome.failure}"))
    return Group(*parts)


def show_result(result: Result, title: str, reference: Reference) -> RenderableType:
    """Return the numbers of one evaluation of something segros did not draw itself."""

    def table(columns: Sequence[Column]) -> Table:
        frame = _frame(f"{title} of {result.backbone}", (), columns, headline=result.headline)
        frame.add_row(*_measured(result, columns))
        return frame

    return Group(_fitted(table, _columns(result, reference), result.headline), *_notes([result]))


def _frame(title: str, lead: Sequence[str], columns: Sequence[Column], *, headline: str) -> Table:
    """Return an empty table whose columns keep their width."""
    table = Table(
        title=title,
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
        title_style="bold",
        title_justify="left",
    )
    for name in lead:
        table.add_column(name, min_width=10, no_wrap=True)
    for column in columns:
        name = f"{column.title} [95%]" if column.metric == headline else column.title
        table.add_column(Text(name), justify="right", no_wrap=True)
    for name in ("n", "Unscored"):
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _fitted(table: Callable[[Sequence[Column]], Table], columns: Sequence[Column], headline: str) -> RenderableType:
    """Return a table of every column, or of the headline alone where the terminal is too narrow for that."""
    kept = [column for column in columns if column.metric == headline]
    if not kept or len(kept) == len(columns):
        return table(columns)
    short = table(kept)
    short.caption = "Other columns need a wider terminal."
    short.caption_justify = "left"
    return _Fitted(table(columns), short)


def _results_tables(outcomes: Sequence[Outcome], reference: Reference) -> RenderableType:
    first = next(outcome.result for outcome in outcomes if outcome.result is not None)
    table = partial(_results_table, outcomes, reference)
    return _fitted(table, _columns(first, reference), first.headline)


def _results_table(outcomes: Sequence[Outcome], reference: Reference, columns: Sequence[Column]) -> Table:
    results = [outcome.result for outcome in outcomes if outcome.result is not None]
    many_backbones = len({result.backbone for result in results}) > 1
    many_seeds = len({result.seeds for result in results}) > 1
    first = outcomes[0]
    title = first.cell.task.title if first.cell else ""
    table = _frame(
        title if many_backbones else f"{title} of {first.stage.card.title}",
        ("Method",),
        columns,
        headline=results[0].headline,
    )
    shown = None
    for outcome, result in zip(outcomes, results, strict=True):
        if many_backbones and result.backbone != shown:
            table.add_section()
            table.add_row(outcome.stage.card.title, style="bold")
            shown = result.backbone
        seeds = f", seed {', '.join(map(str, result.seeds))}" if many_seeds else ""
        table.add_row(f"{outcome.stage.task.title}{seeds}", *_measured(result, columns))
        for row in _printed(result, reference):
            cells = [_number(row.cells[column.key].value) for column in columns]
            table.add_row("  published", *cells, "", "", style="dim italic")
    return table


def _columns(result: Result, reference: Reference) -> list[Column]:
    """Return the paper's columns of an evaluation; all metrics where the paper has none."""
    printed = [
        column
        for table in reference.tables
        if table.name in ("generation", "understanding")
        for column in table.columns
        if column.evaluator == result.evaluator and column.metric in result.metrics
    ]
    return printed or [Column(key=f"{result.evaluator}/{name}", title=name) for name in result.metrics]


def _measured(result: Result, columns: Sequence[Column]) -> Iterator[Text]:
    for column in columns:
        value = _number(result.metrics[column.metric])
        interval = result.intervals.get(column.metric)
        if column.metric != result.headline:
            yield Text(value)
        elif interval is None:
            yield Text(value, style="bold")
        else:
            yield Text.assemble((value, "bold"), f" [{interval.low:.1f}, {interval.high:.1f}]")
    yield Text(f"{result.num_samples:,}")
    yield Text(f"{result.num_unscored:,}", style="bold red" if result.num_unscored else "")


def _printed(result: Result, reference: Reference) -> list[PublishedRow]:
    """Return the published row of a result's model, where world and training data are the paper's."""
    if result.world != "photo" or is_subset(result):
        return []
    tables = [table for table in reference.tables if table.name in ("generation", "understanding")]
    rows = [table.row(result.backbone, result.method) for table in tables]
    return [
        row
        for row in rows
        if row is not None
        and (result.method == "none" or row.data == data_of(result))
        and any(key.startswith(f"{result.evaluator}/") for key in row.cells)
    ]


def _number(value: float | str | None) -> str:
    return f"{value:.1f}" if isinstance(value, (int, float)) else value or MISSING


def _notes(results: Sequence[Result]) -> Iterator[Text]:
    first = results[0]
    about = f"World: {WORLDS[first.world]}. Protocol: {first.protocol}."
    estimators = dict.fromkeys(
        result.intervals[result.headline].estimator for result in results if result.headline in result.intervals
    )
    if estimators:
        about += f" Interval of {first.headline}: {' or '.join(estimators)}."
    if first.world != "photo":
        about += " Not comparable with published numbers."
    if any(is_subset(result) for result in results):
        about += f" A subset: {first.provenance.get('limit')} prompts."
    yield Text(about, style="dim")
