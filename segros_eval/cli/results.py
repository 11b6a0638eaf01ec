"""`segros score`, `leaderboard`, `compare`, `report` and `paper`: numbers from what is there."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from segros_eval.cli.console import FAILED, Tasks, declared, emit, err, names, out, write_document
from segros_eval.cli.judge import GpuMemory, JudgeFlags, MaxModelLen, Port, TensorParallel
from segros_eval.judges.flags import given_flags
from segros_train.errors import PrerequisiteError, unknown_name
from segros_train.files import segros_home, write_text

if TYPE_CHECKING:
    from segros_eval.benchmarks.base import EvalTask, World

__all__ = ["compare", "leaderboard", "paper", "report", "score"]

FORMATS = ("md", "html", "csv", "json", "latex")
Runs = Annotated[Path, typer.Option("--runs", help="Folder of run folders.")]
MaxUnscored = Annotated[
    float, typer.Option("--max-unscored", min=0, max=1, help="Allowed share of items without a value.")
]


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
    gpu_memory_utilization: GpuMemory = None,
    tensor_parallel_size: TensorParallel = None,
    max_model_len: MaxModelLen = None,
    port: Port = None,
    judge_flag: JudgeFlags = None,
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

    task = _evaluator(declared(tasks).evaluators, evaluator)
    shown = _world(task, images, world)
    data = segros_home() / "data" / task.data if task.data and shown == "photo" else None
    flags = given_flags(
        judge_flag,
        gpu_memory_utilization=gpu_memory_utilization,
        tensor_parallel_size=tensor_parallel_size,
        max_model_len=max_model_len,
        port=port,
    )
    with Judges(given=flags) as judges, open_tools(task, shown, judges=judges) as tools:
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
        str | None, typer.Option("--format", help="Print as md, html, csv, json or latex; left out, write the pages.")
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
        if fmt not in FORMATS:
            raise unknown_name("format", fmt, FORMATS)
        results = load_results(folder / "results", *(add or ()), runs)
        emit(render(results, load_reference(_own_reference(folder)), fmt=fmt))  # type: ignore[arg-type]
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
    fmt: Annotated[str, typer.Option("--format", help="md or html.")] = "md",
) -> None:
    """Tell two runs apart, item by item, with the uncertainty of the difference."""
    from segros_eval.pipeline.catalog import load_catalog
    from segros_eval.reporting.compare import compare_runs
    from segros_eval.reporting.run_report import render_comparison

    if fmt not in ("md", "html"):
        raise unknown_name("format", fmt, ("md", "html"))
    emit(render_comparison(compare_runs(a, b, load_catalog().evaluators), fmt=fmt))  # type: ignore[arg-type]


def report(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    fmt: Annotated[str, typer.Option("--format", help="html writes a page into the run folder, md prints.")] = "html",
) -> None:
    """Tell all about one run: numbers, failures, pictures, training curve, provenance."""
    from segros_eval.reporting.run_report import render_report

    if fmt not in ("md", "html"):
        raise unknown_name("format", fmt, ("md", "html"))
    text = render_report(run, fmt=fmt)  # type: ignore[arg-type]
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
) -> None:
    """Show a table of the paper: ours beside the published numbers."""
    from segros_eval.reporting.leaderboard import load_results, render_paper_table
    from segros_eval.reporting.published import load_reference

    catalog = declared()
    if table not in catalog.tables:
        raise unknown_name("table", table, catalog.tables)
    chosen = names(backbone)
    for name in chosen:
        if name not in catalog.backbones:
            raise unknown_name("backbone", name, catalog.backbones)
    if run or dry_run:
        _run_table(catalog, table, chosen, runs=runs, seed=seed, limit=limit, device=device, dry_run=dry_run)
    if not dry_run:
        results = load_results(Path("leaderboards") / "results", runs)
        shown = catalog.tables[table]
        emit(render_paper_table(results, load_reference(), table=shown.table, backbones=chosen))
        if shown.note:
            err().print(shown.note, soft_wrap=True, markup=False)


def _run_table(
    catalog: Any,
    table: str,
    chosen: tuple[str, ...],
    *,
    runs: Path,
    seed: str,
    limit: int | None,
    device: str,
    dry_run: bool,
) -> None:
    """Carry out what a table needs, as far as it is declared."""
    from segros_eval.cli.console import seeds_of
    from segros_eval.cli.run import carry_out
    from segros_eval.pipeline.plan import Request

    wanted = catalog.tables[table]
    backbones = chosen or tuple(name for name in wanted.backbones if name in catalog.backbones)
    evaluators = tuple(name for name in wanted.evals if name in catalog.evaluators)
    absent = [
        name for name in (*wanted.backbones, *wanted.evals) if name not in {**catalog.backbones, **catalog.evaluators}
    ]
    if absent:
        err().print(f"Not in this version, left out: {', '.join(absent)}.")
    for name in backbones:
        data = wanted.data.get(name)
        request = Request(wanted.train, (name,), evaluators, seeds=seeds_of(seed), data=data, limit=limit)
        carry_out(request, out_folder=runs, device=device, max_unscored=0.0, dry_run=dry_run, as_json=False)


def _evaluator(known: Any, name: str) -> EvalTask:
    if name not in known:
        raise unknown_name("evaluator", name, known)
    task: EvalTask = known[name]
    return task


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
