"""`segros judge`: the environment and the server of a vision language model that judges."""

from __future__ import annotations

import functools
import inspect
import signal
from collections.abc import Callable
from typing import Annotated, Any, Literal

import typer

from segros_eval.cli.console import emit, err
from segros_eval.judges.flags import given_flags

__all__ = ["JudgeFlags", "install", "judge", "serve", "takes_judge_flags"]

JudgeFlags = dict[str, str] | None
"""Flags of a judge server that is started, by name."""


def _judge_flags(
    gpu_memory_utilization: Annotated[
        float | None,
        typer.Option("--gpu-memory-utilization", min=0.01, max=1, help="GPU share of a judge server; else what fits."),
    ] = None,
    tensor_parallel_size: Annotated[
        int | None,
        typer.Option("--tensor-parallel-size", min=1, help="GPUs of a judge server; else as few as hold it."),
    ] = None,
    max_model_len: Annotated[
        int | None, typer.Option("--max-model-len", min=1, help="Longest request to a judge server, in tokens.")
    ] = None,
    port: Annotated[
        int | None, typer.Option("--port", min=1, max=65535, help="Port of a judge server; else a free one.")
    ] = None,
    judge_flag: Annotated[
        list[str] | None,
        typer.Option("--judge-flag", metavar="NAME=VALUE", help="Any other flag of a judge server; repeatable."),
    ] = None,
) -> None: ...


def takes_judge_flags(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of a judge server, which it takes together as `judge_flags`."""
    options = inspect.signature(_judge_flags, eval_str=True).parameters
    parameters = inspect.signature(command, eval_str=True).parameters

    @functools.wraps(command)
    def with_options(**given: Any) -> None:
        named = {name: given.pop(name) for name in options}
        command(**given, judge_flags=given_flags(named.pop("judge_flag"), **named))

    listed = [own for name, one in parameters.items() for own in (options.values() if name == "judge_flags" else [one])]
    with_options.__signature__ = inspect.Signature(listed)  # type: ignore[attr-defined]
    with_options.__annotations__ = {one.name: one.annotation for one in listed}
    return with_options


judge = typer.Typer(
    no_args_is_help=True,
    help="Judges are OpenAI-compatible servers: one that $SEGROS_JUDGE names (http://host:8000/v1), or one of ours.",
)


@judge.command("install")
def install(
    kind: Annotated[
        Literal["auto", "gpu", "cpu"], typer.Option("--kind", help="cpu is slow, for small models.")
    ] = "auto",
) -> None:
    """Build vLLM's own environment with uv, from pinned versions."""
    from segros_eval.judges.vllm_server import install as build

    if kind == "auto":
        import torch

        kind = "gpu" if torch.cuda.is_available() else "cpu"
    with err().status("vLLM") as status:
        folder = build(kind, tell=lambda what: status.update(f"installing {what}"))
    emit(f"installed {folder} ({kind})")


@judge.command("serve")
@takes_judge_flags
def serve(
    model: Annotated[str, typer.Argument(help="Model, as the hub names it, or a folder.")],
    revision: Annotated[str, typer.Option("--revision", help="Its revision.")] = "",
    judge_flags: JudgeFlags = None,
) -> None:
    """Serve a judge until interrupted; runs on this machine find it by themselves."""
    from segros_eval.judges.vllm_server import JudgeServer

    with err().status("judge server") as status:
        server = JudgeServer(model, revision=revision, given=judge_flags or {}, tell=status.update)
        base = server.start()
    try:
        emit(f"serving {model} at {base} (log: {server.log})")
        signal.pause()
    finally:
        server.stop()
