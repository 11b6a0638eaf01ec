"""`segros score`, `leaderboard`, `compare`, `report` and `paper`: numbers from what is there."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from segros_eval.cli.console import FAILED, Tasks, declared, emit, err, names, out, seeds_of, write_document
from segros_eval.cli.judge import JudgeFlags, takes_judge_flags
from segros_train.errors import PrerequisiteError, chosen, unknown_name
from segros_train.files import segros_home, write_text

if TYPE_CHECKING:
    from segros_eval.benchmarks.base import EvalTask, World
    from segros_eval.pipeline.catalog import Catalog
    from segros_eval.pipeline.paper import PaperTable

__all__ = ["compare", "leaderboard", "paper", "report", "score"]

Runs = Annotated[Path, typer.Option("--runs", help="Folder of run folders.")]
MaxUnscored = Annotated[
    float, typer.Option("--max-unscored", min=0, max=1, help="Allowed share of items without a value.")
]


@takes_judge_flags
def score(
    evaluator: Annotated[str, typer.Argument(help="Name of the evaluation, e.g. geneval.")],
    images: Annotated[Path, typer.Option("--images", help="Folder in the benchmark's official layout.")],
    world: Annotated[
        str | None, typer.Option("--world", help="photo or shapes; told by the folder's prompts if left out.")
    ] = None,
    side_px: Annotated[
        int | None,
        typer.Option("--side-px", min=1, help="Size that images must have, in a grid each cell; else that of most."),
    ] = None,
    max_unscored: MaxUnscored = 0.0,
    judge_flags: JudgeFlags = None,
    tasks: Tasks = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")] = False,
) -> None:
    """Score a folder of images that anything drew."""
    from segros_eval.cli.listener import RichListener
    from segros_eval.pipeline.judges import Judges
    from segros_eval.pipeline.score import count_images, score_folder
    from segros_eval.pipeline.store import result_to_json
    from segros_eval.pipeline.tools import open_tools
    from segros_eval.reporting.published import load_reference
    from segros_eval.reporting.terminal import show_result

    task = chosen("evaluator", evaluator, declared(tasks).evaluators)
    shown = _world(task, images, world)
    data = segros_home() / "data" / task.data if task.data and shown == "photo" else None
    with Judges(given=judge_flags) as judges, open_tools(task, shown, judges=judges) as tools:
        with RichListener().phase(f"score  {task.name}: {images}", count_images(images)) as tell:
            scored = score_folder(task, images, tools=tools, world=shown, data=data, side_px=side_px, advance=tell)
    for fault in scored.faults:
        err().print(f"{fault.kind}  {fault.item}: {fault.detail}", soft_wrap=True, markup=False)
    if as_json:
        write_document({"cells": [result_to_json(scored.result)]})
    else:
        out().print(show_result(scored.result, task.title, load_reference()))
    total = scored.result.num_samples + scored.result.num_unscored
    if scored.result.num_unscored > max_unscored * total:
        raise typer.Exit(FAILED)


def leaderboard(
    fmt: Annotated[
        Literal["md", "html", "csv", "json", "latex"] | None,
        typer.Option("--format", help="Print in this format; left out, write the pages."),
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Say which pages are stale; write nothing.")] = False,
    add: Annotated[
        list[Path] | None, typer.Option("--add", help="Run folder whose results join the leaderboard; repeatable.")
    ] = None,
    runs: Runs = Path("runs"),
    folder: Annotated[Path, typer.Option("--folder", help="Folder of the leaderboard's files.")] = Path("leaderboards"),
) -> None:
    """Render measured results beside published numbers."""
    from segros_eval.reporting.leaderboard import check_rendered, load_results, publish_results, render, write_rendered
    from segros_eval.reporting.published import load_reference

    if fmt is not None:
        results = load_results(folder / "results", *(add or ()), runs)
        emit(render(results, load_reference(_own_reference(folder)), fmt=fmt))
        return
    if _own_reference(folder) is None:
        raise PrerequisiteError(
            f"There is no leaderboard in {folder}: reference/segros.json is missing",
            "Name its folder with --folder, or print the results of your runs with --format md.",
        )
    if check:
        stale = check_rendered(folder)
        for path in stale:
            err().print(f"stale  {path}: render it with `segros leaderboard`.", soft_wrap=True)
        raise typer.Exit(FAILED if stale else 0)
    for run in add or ():
        publish_results(_results_of(run), folder / "results")
    changed = write_rendered(folder)
    emit("\n".join(f"written  {path}" for path in changed) or "Every page is up to date.")


def compare(
    a: Annotated[Path, typer.Argument(help="Run folder A.")],
    b: Annotated[Path, typer.Argument(help="Run folder B.")],
    fmt: Annotated[Literal["md", "html"], typer.Option("--format", help="What to print.")] = "md",
    tasks: Tasks = None,
) -> None:
    """Tell two runs apart, item by item, with the uncertainty of the difference."""
    from segros_eval.reporting.compare import compare_runs
    from segros_eval.reporting.run_report import render_comparison

    emit(render_comparison(compare_runs(a, b, declared(tasks).evaluators), fmt=fmt))


def report(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    fmt: Annotated[
        Literal["html", "md"], typer.Option("--format", help="html writes a page into the run folder, md prints.")
    ] = "html",
) -> None:
    """Tell all about one run: numbers, failures, pictures, training curve, provenance."""
    from segros_eval.reporting.run_report import render_report

    text = render_report(run, fmt=fmt)
    if fmt == "md":
        emit(text)
        return
    page = run / "report.html"
    write_text(page, text)
    emit(f"written  {page}")


def paper(
    table: Annotated[str, typer.Argument(help="Name of a table, e.g. table-1. See `segros list`.")],
    backbone: Annotated[str | None, typer.Option("--backbone", help="Names separated by commas.")] = None,
    run: Annotated[bool, typer.Option("--run", help="Train and score the cells first.")] = False,
    seed: Annotated[str, typer.Option("--seed", help="Seeds separated by commas; with --run.")] = "0",
    limit: Annotated[int | None, typer.Option("--limit", help="Fewer prompts; with --run.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what --run would do.")] = False,
    runs: Runs = Path("runs"),
    device: Annotated[str, typer.Option("--device", help="auto, cpu or cuda; with --run.")] = "auto",
    tasks: Tasks = None,
) -> None:
    """Show a table of the paper: ours beside the published numbers."""
    from segros_eval.reporting.leaderboard import load_results, render_paper_table
    from segros_eval.reporting.published import load_reference

    catalog = declared(tasks)
    shown = chosen("table", table, catalog.tables)
    backbones = tuple(chosen("backbone", name, catalog.backbones).name for name in names(backbone))
    if run or dry_run:
        options = {"out_folder": runs, "device": device, "dry_run": dry_run, "tasks": tasks}
        _run_table(catalog, shown, backbones, seeds=seeds_of(seed), limit=limit, **options)
    if not dry_run:
        results = load_results(Path("leaderboards") / "results", runs)
        emit(render_paper_table(results, load_reference(), table=shown.table, backbones=backbones))
        if shown.note:
            err().print(shown.note, soft_wrap=True, markup=False)


def _run_table(
    catalog: Catalog,
    wanted: PaperTable,
    asked: tuple[str, ...],
    *,
    seeds: tuple[int, ...],
    limit: int | None,
    **options: Any,
) -> None:
    """Carry out what a table needs, as far as it is declared."""
    from segros_eval.cli.run import carry_out
    from segros_eval.pipeline.plan import Request

    backbones = asked or tuple(name for name in wanted.backbones if name in catalog.backbones)
    evaluators = tuple(name for name in wanted.evals if name in catalog.evaluators)
    absent = [
        name for name in (*wanted.backbones, *wanted.evals) if name not in {**catalog.backbones, **catalog.evaluators}
    ]
    if absent:
        err().print(f"Not in this version, left out: {', '.join(absent)}.")
    for name in backbones:
        data = wanted.data.get(name)
        request = Request(wanted.train, (name,), evaluators, seeds=seeds, data=data, limit=limit)
        carry_out(request, max_unscored=0.0, as_json=False, **options)


def _world(task: EvalTask, images: Path, asked: str | None) -> World:
    """Return the world of a folder: as asked, else as its prompts tell."""
    from segros_eval.pipeline.score import world_of

    if asked is not None:
        if asked not in task.worlds:
            raise unknown_name("world", asked, task.worlds)
        return "shapes" if asked == "shapes" else "photo"
    return world_of(task, images)


def _results_of(run: Path) -> list[Any]:
    from segros_eval.reporting.leaderboard import load_results

    results = load_results(run)
    if not results:
        raise PrerequisiteError(
            f"{run} holds no result",
            "Name a run folder that an evaluation has finished in.",
        )
    return results


def _own_reference(folder: Path) -> Path | None:
    path = folder / "reference" / "segros.json"
    return path if path.is_file() else None
