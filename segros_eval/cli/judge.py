"""`segros judge`: the environment and the server of a vision language model that judges."""

from __future__ import annotations

import signal
from typing import Annotated

import typer

from segros_eval.cli.console import emit, err
from segros_eval.judges.flags import given_flags
from segros_train.errors import unknown_name

__all__ = ["GpuMemory", "JudgeFlags", "MaxModelLen", "Port", "TensorParallel", "install", "judge", "serve"]

KINDS = ("auto", "gpu", "cpu")
GpuMemory = Annotated[
    float | None,
    typer.Option("--gpu-memory-utilization", min=0.01, max=1, help="GPU share of a judge server; else what fits."),
]
TensorParallel = Annotated[
    int | None, typer.Option("--tensor-parallel-size", min=1, help="GPUs of a judge server; else as few as hold it.")
]
MaxModelLen = Annotated[
    int | None, typer.Option("--max-model-len", min=1, help="Longest request to a judge server, in tokens.")
]
Port = Annotated[int | None, typer.Option("--port", min=1, max=65535, help="Port of a judge server; else a free one.")]
JudgeFlags = Annotated[
    list[str] | None,
    typer.Option("--judge-flag", metavar="NAME=VALUE", help="Any other flag of a judge server (vLLM); repeatable."),
]
judge = typer.Typer(
    no_args_is_help=True,
    help="Judges are OpenAI-compatible servers: one that $SEGROS_JUDGE names (http://host:8000/v1), or one of ours.",
)


@judge.command("install")
def install(
    kind: Annotated[str, typer.Option("--kind", help="gpu, cpu (slow, for small models), or auto.")] = "auto",
) -> None:
    """Build vLLM's own environment with uv, from pinned versions."""
    from segros_eval.judges.vllm_server import install as build

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
    gpu_memory_utilization: GpuMemory = None,
    tensor_parallel_size: TensorParallel = None,
    max_model_len: MaxModelLen = None,
    port: Port = None,
    judge_flag: JudgeFlags = None,
) -> None:
    """Serve a judge until interrupted; runs on this machine find it by themselves."""
    from segros_eval.judges.vllm_server import JudgeServer

    given = given_flags(
        judge_flag,
        gpu_memory_utilization=gpu_memory_utilization,
        tensor_parallel_size=tensor_parallel_size,
        max_model_len=max_model_len,
        port=port,
    )
    with err().status("judge server") as status:
        server = JudgeServer(model, revision=revision, given=given, tell=status.update)
        base = server.start()
    try:
        emit(f"serving {model} at {base} (log: {server.log})")
        signal.pause()
    finally:
        server.stop()
