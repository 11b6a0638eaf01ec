"""Tables on a terminal: the plan before a run, the numbers after it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table as RichTable
from rich.text import Text

from segros_eval.benchmarks.base import Result
from segros_eval.pipeline.plan import RunPlan
from segros_eval.pipeline.preflight import GIB, Cost, estimate
from segros_eval.pipeline.runner import Outcome
from segros_eval.reporting.layout import value_cell
from segros_eval.reporting.published import Column, PublishedRow, Reference
from segros_eval.reporting.rows import Value, data_of, is_subset, measured_value, own_columns
from segros_eval.reporting.table import MISSING, Cell, Head, Table, make_table
from segros_train.errors import Problem

__all__ = ["show_outcomes", "show_plan", "show_problems", "show_result"]

WORLDS = {"photo": "photographs", "shapes": "the embedded world of shapes"}
WIDE = 1000
"""More characters than any table takes."""


class _Fitted:
    """The first of several tables that is not wider than the terminal, else the last."""

    def __init__(self, *tables: RichTable) -> None:
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
    table = RichTable(box=box.SIMPLE_HEAD, pad_edge=False)
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
    groups: dict[tuple[str, str], list[tuple[Outcome, Result]]] = {}
    for outcome in outcomes:
        if outcome.result is not None:
            groups.setdefault((outcome.result.evaluator, outcome.result.world), []).append((outcome, outcome.result))
    parts: list[RenderableType] = []
    for group in groups.values():
        parts += [_shown(_outcome_table(group, reference)), Text(_about([result for _, result in group]), style="dim")]
    for outcome in outcomes:
        if outcome.failure:
            what = f"{outcome.stage.folder}, {outcome.cell.task.name}" if outcome.cell else outcome.stage.folder
            parts.append(Text.assemble(("failed  ", "bold red"), f"{what}: {outcome.failure}"))
    return Group(*parts)


def show_result(result: Result, title: str, reference: Reference) -> RenderableType:
    """Return the numbers of one evaluation of something segros did not draw itself."""
    columns = _columns([result], reference)
    heads = [*_heads(columns, result.headline), *COUNTS]
    table = make_table("result", f"{title} of {result.backbone}", heads, [tuple(_measured(result, columns))])
    return Group(_shown(table), Text(_about([result]), style="dim"))


def _outcome_table(group: Sequence[tuple[Outcome, Result]], reference: Reference) -> Table:
    results = [result for _, result in group]
    columns, first = _columns(results, reference), group[0][0]
    many_backbones, many_seeds = (len({getattr(one, what) for one in results}) > 1 for what in ("backbone", "seeds"))
    title = first.cell.task.title if first.cell else ""
    rows: list[tuple[str | Cell, ...]] = []
    kinds = []
    for outcome, result in group:
        seeds = f", seed {', '.join(map(str, result.seeds))}" if many_seeds else ""
        who = [outcome.stage.card.title] if many_backbones else []
        rows.append((*who, f"{outcome.stage.task.title}{seeds}", *_measured(result, columns)))
        kinds.append("measured")
        for row in _printed(result, reference):
            values = [value_cell(Value(row.cells[column.key].value)) for column in columns]
            rows.append((*["" for _ in who], "  published", *values, "", ""))
            kinds.append("published")
    lead = ["UMM"] if many_backbones else []
    heads = [*(Head("", name) for name in (*lead, "Method")), *_heads(columns, results[0].headline), *COUNTS]
    return make_table("outcome", title if lead else f"{title} of {first.stage.card.title}", heads, rows, kinds=kinds)


COUNTS = (Head("", "n", True), Head("", "Unscored", True))


def _heads(columns: Sequence[Column], headline: str) -> list[Head]:
    """Return heads of values; the headline's, which has its interval beside it, is marked by its group."""
    return [
        Head("headline", f"{column.title} [95%]", True) if column.metric == headline else Head("", column.title, True)
        for column in columns
    ]


def _shown(table: Table) -> RenderableType:
    """Return a table in full, or without the values beside its headline where the terminal is too narrow for that."""
    heads = table.heads
    short = [place for place, head in enumerate(heads) if head.group or not head.numeric or head in COUNTS]
    if not any(head.group for head in heads) or len(short) == len(heads):
        return _rich(table, range(len(heads)))
    narrow = _rich(table, short)
    narrow.caption = "Other columns need a wider terminal."
    narrow.caption_justify = "left"
    return _Fitted(_rich(table, range(len(heads))), narrow)


def _rich(table: Table, places: Sequence[int]) -> RichTable:
    """Return some columns of a table, which keep their width."""
    shown = RichTable(
        title=table.title,
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
        title_style="bold",
        title_justify="left",
    )
    for head in (table.heads[place] for place in places):
        justify: Literal["left", "right"] = "right" if head.numeric else "left"
        shown.add_column(Text(head.text), justify=justify, no_wrap=True, min_width=None if head.numeric else 10)
    for kind, cells in table.rows:
        texts = [
            Text.assemble((cell.text, "bold"), f" {cell.detail}")
            if cell.detail
            else Text(cell.text, style="bold red" if cell.tone == "bad" else "")
            for cell in (cells[place] for place in places)
        ]
        shown.add_row(*texts, style="dim italic" if kind == "published" else None)
    return shown


def _columns(results: Sequence[Result], reference: Reference) -> list[Column]:
    """Return the paper's columns of an evaluation, as far as anything was asked; its own where the paper has none."""
    printed = [
        column
        for table in reference.tables
        if table.name in ("generation", "understanding")
        for column in table.columns
        if column.evaluator == results[0].evaluator and any(column.metric in result.metrics for result in results)
    ]
    return printed or list(own_columns(results))


def _measured(result: Result, columns: Sequence[Column]) -> Iterator[Cell]:
    yield from (value_cell(measured_value(result, column)) for column in columns)
    yield Cell(f"{result.num_samples:,}")
    yield Cell(f"{result.num_unscored:,}", tone="bad" if result.num_unscored else "")


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


def _about(results: Sequence[Result]) -> str:
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
    return about
