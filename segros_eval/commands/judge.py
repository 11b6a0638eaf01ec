"""`segros judge`: the environment and the server of a vision language model that judges."""

from __future__ import annotations

import signal
from typing import Annotated, Any

import typer

from segros_eval.commands.console import emit, err
from segros_train.errors import unknown_name

__all__ = ["install", "judge", "serve"]

KINDS = ("auto", "gpu", "cpu")
judge = typer.Typer(
    no_args_is_help=True,
    help="Judges are OpenAI-compatible servers: one that $SEGROS_JUDGE names (http://host:8000/v1), or one of ours.",
)


@judge.command("install")
def install(
    kind: Annotated[str, typer.Option("--kind", help="gpu, cpu (slow, for small models), or auto.")] = "auto",
) -> None:
    """Build vLLM's own environment with uv, from pinned versions."""
    from segros_eval.judge_server import install as build

    if kind not in KINDS:
        raise unknown_name("kind", kind, KINDS)
    if kind == "auto":
        import torch

        kind = "gpu" if torch.cuda.is_available() else "cpu"
    with err().status("vLLM") as status:
        folder = build(kind, tell=lambda what: status.update(f"installing {what}"))
    emit(f"installed {folder} ({kind})")


@judge.command("serve")
def serve(
    model: Annotated[str, typer.Argument(help="Model, as the hub names it, or a folder.")],
    revision: Annotated[str, typer.Option("--revision", help="Its revision.")] = "",
) -> None:
    """Serve a judge until interrupted; runs on this machine find it by themselves."""
    from segros_eval.judge_server import JudgeServer

    signal.signal(signal.SIGTERM, _interrupted)
    with err().status("judge server") as status:
        server = JudgeServer(model, revision=revision, tell=status.update)
        base = server.start()
    try:
        emit(f"serving {model} at {base} (log: {server.log})")
        signal.pause()
    finally:
        server.stop()


def _interrupted(*_: Any) -> None:
    raise KeyboardInterrupt
