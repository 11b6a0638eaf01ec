"""`segros run`, `train` and `eval`: plan, check, carry out, show."""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from segros_eval.cli.console import FAILED, UNUSABLE, Tasks, declared, err, names, out, seeds_of, write_document
from segros_eval.cli.judge import JudgeFlags, takes_judge_flags
from segros_train.errors import PrerequisiteError, Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from segros_eval.pipeline.plan import Request, RunPlan
    from segros_eval.pipeline.runner import Outcome

__all__ = ["carry_out", "evaluate", "run", "train"]

Methods = Annotated[str, typer.Option("--method", help="Names separated by commas, or all. See `segros list`.")]
Backbones = Annotated[str, typer.Option("--backbone", help="Names separated by commas, or all.")]
Evaluators = Annotated[str, typer.Option("--eval", help="Names separated by commas, or all.")]
Seeds = Annotated[str, typer.Option("--seed", help="Seeds separated by commas; each is a run of its own.")]
Data = Annotated[str | None, typer.Option("--data", help="Training data in place of the backbone's.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Change a declared value; repeatable.")
]
Limit = Annotated[int | None, typer.Option("--limit", help="Fewer prompts; the result is marked as a subset.")]
OutFolder = Annotated[Path, typer.Option("--out", help="Folder of run folders.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")]
MaxUnscored = Annotated[
    float, typer.Option("--max-unscored", min=0, max=1, help="Allowed share of items without a value.")
]
Latents = Annotated[
    bool, typer.Option("--latents", help="Train from what `segros data encode` made of the images; needs crop=fixed.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show the plan, its cost and what is missing; do nothing.")]


class Reusing(StrEnum):
    """When finished work is taken up: where key and code are the same, or wherever the key is."""

    code = "code"
    key = "key"


Reuse = Annotated[
    Reusing, typer.Option("--reuse", help="Take up finished work of the same key and code, or of the same key.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output, nothing else.")]


@takes_judge_flags
def run(
    method: Methods,
    backbone: Backbones,
    evaluators: Evaluators,
    seed: Seeds = "0",
    data: Data = None,
    overrides: Overrides = None,
    limit: Limit = None,
    out_folder: OutFolder = Path("runs"),
    device: Device = "auto",
    max_unscored: MaxUnscored = 0.0,
    latents: Latents = False,
    reuse: Reuse = Reusing.code,
    tasks: Tasks = None,
    judge_flags: JudgeFlags = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Train, draw, answer, score and sum up: every method on every backbone by every evaluator."""
    from segros_eval.pipeline.plan import Request

    request = Request(
        methods=names(method),
        backbones=names(backbone),
        evaluators=names(evaluators),
        seeds=seeds_of(seed),
        data=data,
        overrides=tuple(overrides or ()),
        limit=limit,
        latents=latents,
        reuse=reuse.value,
    )
    carry_out(
        request,
        out_folder=out_folder,
        device=device,
        max_unscored=max_unscored,
        dry_run=dry_run,
        as_json=as_json,
        judge_flags=judge_flags,
        tasks=tasks,
    )


def train(
    method: Methods,
    backbone: Backbones,
    seed: Seeds = "0",
    data: Data = None,
    overrides: Overrides = None,
    out_folder: OutFolder = Path("runs"),
    device: Device = "auto",
    latents: Latents = False,
    reuse: Reuse = Reusing.code,
    tasks: Tasks = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Train without evaluating; a run that was stopped goes on where it was."""
    from segros_eval.pipeline.plan import Request

    request = Request(
        methods=names(method),
        backbones=names(backbone),
        seeds=seeds_of(seed),
        data=data,
        overrides=tuple(overrides or ()),
        latents=latents,
        reuse=reuse.value,
    )
    carry_out(
        request,
        out_folder=out_folder,
        device=device,
        max_unscored=0.0,
        dry_run=dry_run,
        as_json=as_json,
        tasks=tasks,
    )


@takes_judge_flags
def evaluate(
    checkpoint: Annotated[Path, typer.Option("--checkpoint", help="A checkpoint folder, or a run folder.")],
    evaluators: Evaluators,
    method: Annotated[
        str | None, typer.Option("--method", help="What trained it; needed for checkpoints outside a run folder.")
    ] = None,
    seed: Seeds = "0",
    overrides: Overrides = None,
    limit: Limit = None,
    out_folder: OutFolder = Path("runs"),
    device: Device = "auto",
    max_unscored: MaxUnscored = 0.0,
    reuse: Reuse = Reusing.code,
    tasks: Tasks = None,
    judge_flags: JudgeFlags = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Evaluate a checkpoint."""
    from segros_eval.pipeline.checkpoints import backbone_of, checkpoint_in, method_of
    from segros_eval.pipeline.plan import Request

    folder = checkpoint_in(checkpoint)
    request = Request(
        methods=(method or method_of(folder),),
        backbones=(backbone_of(folder),),
        evaluators=names(evaluators),
        seeds=seeds_of(seed),
        overrides=tuple(overrides or ()),
        limit=limit,
        checkpoint=folder,
        reuse=reuse.value,
    )
    carry_out(
        request,
        out_folder=out_folder,
        device=device,
        max_unscored=max_unscored,
        dry_run=dry_run,
        as_json=as_json,
        judge_flags=judge_flags,
        tasks=tasks,
    )


def carry_out(
    request: Request,
    *,
    out_folder: Path,
    device: str,
    max_unscored: float,
    dry_run: bool,
    as_json: bool,
    judge_flags: Mapping[str, str] | None = None,
    tasks: list[Path] | None = None,
) -> None:
    """Plan a request, check it, carry it out and show the numbers.

    Raises:
        PrerequisiteError: If the request names what does not exist.
        typer.Exit: With 2 where something is missing, 1 where a cell failed or too much is unscored.
    """
    from segros_eval.pipeline.plan import make_plan
    from segros_eval.pipeline.preflight import check_plan
    from segros_eval.pipeline.ranks import Ranks
    from segros_eval.pipeline.runner import run_plan
    from segros_eval.reporting.terminal import show_plan, show_problems

    _check_not_empty(request)
    ranks = Ranks.here()
    plan = make_plan(declared(tasks), replace(request, num_ranks=ranks.num_ranks))
    problems = check_plan(plan, out=out_folder, device=device)
    if not ranks.is_first:
        _follow(plan, problems, out_folder=out_folder, device=device, dry_run=dry_run)
    elif dry_run:
        if as_json:
            write_document({"plan": _plan_document(plan), "missing": [str(problem) for problem in problems]})
            return
        console = out()
        console.print(show_plan(plan))
        console.print(show_problems(problems) if problems else "Nothing is missing.", soft_wrap=True)
    elif problems:
        if as_json:
            write_document({"cells": [], "missing": [str(problem) for problem in problems]})
        err().print(show_problems(problems), soft_wrap=True)
        raise typer.Exit(UNUSABLE)
    else:
        work = partial(run_plan, plan, out=out_folder, device=device, judge_flags=judge_flags)
        _run(work, out_folder=out_folder, max_unscored=max_unscored, as_json=as_json)


def _follow(plan: RunPlan, problems: Sequence[Problem], *, out_folder: Path, device: str, dry_run: bool) -> None:
    """Take part in a run whose first process does the talking."""
    from segros_eval.pipeline.progress import Silent
    from segros_eval.pipeline.runner import run_plan

    if problems and not dry_run:
        raise typer.Exit(UNUSABLE)
    if not dry_run:
        run_plan(plan, out=out_folder, device=device, listener=Silent())


def _run(work: Callable[..., list[Outcome]], *, out_folder: Path, max_unscored: float, as_json: bool) -> None:
    from segros_eval.cli.listener import RichListener
    from segros_eval.reporting.leaderboard import load_results, render
    from segros_eval.reporting.published import load_reference
    from segros_eval.reporting.terminal import show_outcomes
    from segros_train.files import write_text

    listener = RichListener()
    outcomes = work(listener=listener)
    reference = load_reference()
    leaderboard = out_folder / "leaderboard.md"
    # The numbers first: a damaged result of another run may stop the leaderboard.
    if as_json:
        write_document({"cells": [_outcome_document(outcome) for outcome in outcomes]})
    else:
        out().print(show_outcomes(outcomes, reference))
    if any(outcome.result for outcome in outcomes):
        write_text(leaderboard, render(load_results(out_folder), reference, fmt="md"))
    if not as_json:
        _show_files(outcomes, leaderboard)
    if not all(_acceptable(outcome, max_unscored) for outcome in outcomes):
        raise typer.Exit(FAILED)


def _acceptable(outcome: Outcome, max_unscored: float) -> bool:
    if outcome.failure:
        return False
    return outcome.cell is None or outcome.unscored_share <= max_unscored


def _show_files(outcomes: list[Outcome], leaderboard: Path) -> None:
    console = out()
    if any(outcome.result for outcome in outcomes):
        console.print(f"Leaderboard: {leaderboard}", soft_wrap=True)
    folders = list(dict.fromkeys(outcome.folder for outcome in outcomes))
    console.print("Runs: " + ("\n      ".join(str(folder) for folder in folders)), soft_wrap=True)


def _outcome_document(outcome: Outcome) -> dict[str, Any]:
    from segros_eval.pipeline.store import result_to_json

    document: dict[str, Any] = {
        "method": outcome.stage.task.name,
        "backbone": outcome.stage.card.name,
        "evaluator": outcome.cell.task.name if outcome.cell else None,
        "key": outcome.cell.key if outcome.cell else outcome.stage.key,
        "status": "failed" if outcome.failure else "scored" if outcome.result else "trained",
        "reused": outcome.reused,
        "folder": str(outcome.folder),
        "failure": outcome.failure or None,
    }
    return {**(result_to_json(outcome.result) if outcome.result else {}), **document}


def _plan_document(plan: RunPlan) -> list[dict[str, Any]]:
    from dataclasses import asdict

    from segros_eval.pipeline.keys import to_jsonable
    from segros_eval.pipeline.preflight import estimate

    return [{**to_jsonable(stage), "folder": stage.folder, "cost": asdict(estimate(stage))} for stage in plan.stages]


def _check_not_empty(request: Request) -> None:
    for option, given in (("--method", request.methods), ("--backbone", request.backbones)):
        if not given:
            raise PrerequisiteError(
                f"{option} names nothing",
                "`segros list` shows what there is.",
            )
