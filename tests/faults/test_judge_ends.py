"""Whatever ends a run ends its judge server: real processes, a small server in the place of vLLM."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from judge_stub import StubJudge

from segros_eval.judges import vllm_server
from segros_train.errors import PrerequisiteError

RUN = """
import sys, time
from segros_eval.cli import app as cli; from segros_eval.judges import vllm_server as judge_server
judge_server.GRACE_SECONDS = 1.0

def work():
    server = judge_server.JudgeServer("tiny")
    try:
        print(server.start(), flush=True)
        {body}
    finally:
        server.stop()

cli.app = work
cli.main()
"""
WAIT = "time.sleep(120)"
RAISE = "raise RuntimeError('a fault of the program')"
RETURN = "pass"


@dataclass(frozen=True)
class Judge(StubJudge):
    """A run that starts the stub."""

    def run(self, body: str) -> subprocess.Popen[str]:
        environment = {name: value for name, value in os.environ.items() if name != "SEGROS_JUDGE"}
        return subprocess.Popen(
            [sys.executable, "-c", RUN.format(body=body)],
            env=environment | {"SEGROS_HOME": str(self.home), "no_proxy": "*"},
            stdout=subprocess.PIPE,
            text=True,
        )

    @property
    def group(self) -> int:
        """The group of the server that was started last, told by its worker, which outlives a kind request to end."""
        return os.getpgid(self.starts()[-1][0])


@pytest.fixture
def judge(tmp_path: Path) -> Iterator[Judge]:
    yield Judge(tmp_path)


def members(group: int) -> list[str]:
    """Return the processes of a group that live, by `ps`."""
    listing = subprocess.run(["ps", "-eo", "pgid=,stat=,args="], capture_output=True, text=True, check=True).stdout
    rows = (line.split(maxsplit=2) for line in listing.splitlines())
    return [row[2] for row in rows if int(row[0]) == group and not row[1].startswith("Z")]


def gone(group: int, seconds: float = 20.0) -> list[str]:
    """Wait until no process of a group is left, and return those that are."""
    end = time.monotonic() + seconds
    while (left := members(group)) and time.monotonic() < end:
        time.sleep(0.1)
    return left


def started(run: subprocess.Popen[str], judge: Judge) -> int:
    assert run.stdout is not None
    assert run.stdout.readline().startswith("http://127.0.0.1:")
    group = judge.group
    assert len(members(group)) == 3, "a watcher, a server and its worker"
    assert group != os.getpgid(run.pid)
    return group


@pytest.mark.slow
@pytest.mark.parametrize("stubborn", (False, True), ids=("kind", "stubborn"))
@pytest.mark.parametrize(
    ("number", "code"),
    (
        (signal.SIGTERM, 128 + signal.SIGTERM),
        (signal.SIGHUP, 128 + signal.SIGHUP),
        (signal.SIGINT, None),
        (signal.SIGKILL, -signal.SIGKILL),
    ),
    ids=("SIGTERM", "SIGHUP", "SIGINT", "SIGKILL"),
)
def test_a_signal_that_ends_a_run_leaves_no_process_of_its_judge(
    judge: Judge, number: signal.Signals, code: int | None, stubborn: bool
) -> None:
    judge.install(stubborn=stubborn)
    run = judge.run(WAIT)
    group = started(run, judge)
    run.send_signal(number)
    left = run.wait(60)
    assert left == code if code is not None else left != 0
    assert gone(group) == []


def test_a_second_signal_does_not_stop_the_ending(judge: Judge) -> None:
    judge.install(stubborn=True)
    run = judge.run(WAIT)
    group = started(run, judge)
    run.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    run.send_signal(signal.SIGTERM)
    assert run.wait(60) == 128 + signal.SIGTERM
    assert members(group) == []


@pytest.mark.slow
@pytest.mark.parametrize(("body", "code"), ((RAISE, 1), (RETURN, 0)), ids=("exception", "normal"))
def test_a_run_that_ends_by_itself_has_ended_its_judge_before(judge: Judge, body: str, code: int) -> None:
    judge.install(stubborn=False)
    run = judge.run(f"time.sleep(1.5); {body}")
    group = started(run, judge)
    assert run.wait(60) == code
    assert members(group) == []


@pytest.mark.slow
def test_a_server_that_is_killed_is_started_again_and_another_process_finds_it_and_leaves_it(
    judge: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge.install(stubborn=False)
    monkeypatch.setenv("SEGROS_HOME", str(judge.home))
    monkeypatch.setattr(vllm_server, "GRACE_SECONDS", 1.0)
    server = vllm_server.JudgeServer("tiny", given={"gpu-memory-utilization": "0.5", "max-num-seqs": "4"})
    server.start()
    first = judge.group
    os.killpg(first, signal.SIGKILL)
    assert gone(first) == []
    base = server.start()
    assert server.record["starts"] == 2 and judge.group != first
    other = vllm_server.JudgeServer("tiny", given={"max-num-seqs": "4"})
    assert other.start() == base and other.record["starts"] == 0
    assert other.record["flags"] == server.record["flags"], "the record tells the flags of the server that is used"
    other.stop()
    second = judge.group
    assert len(members(second)) == 3
    server.stop()
    assert members(second) == []


@pytest.mark.slow
def test_what_a_user_gives_reaches_the_server_and_the_record(judge: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    judge.install(stubborn=False)
    monkeypatch.setenv("SEGROS_HOME", str(judge.home))
    monkeypatch.setattr(vllm_server, "GRACE_SECONDS", 1.0)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        busy = vllm_server.JudgeServer("tiny", given={"port": str(port)})
        probe.listen()
        with pytest.raises(PrerequisiteError, match=f"port {port}"):
            busy.start()
    server = vllm_server.JudgeServer("tiny", given={"port": str(port), "max-model-len": "512", "dtype": "float16"})
    try:
        assert server.start() == f"http://127.0.0.1:{port}/v1"
        ((_, arguments),) = judge.starts()
        pairs = dict(zip(server.record["flags"], server.record["flags"][1:], strict=False))
        told = dict(zip(arguments, arguments[1:], strict=False))
        for found in (pairs, told):
            assert (found["--max-model-len"], found["--dtype"], found["--port"]) == ("512", "float16", str(port))
        assert arguments.count("--max-model-len") == arguments.count("--port") == 1
    finally:
        server.stop()


def test_a_server_that_ends_at_its_start_is_told_with_its_log(judge: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    judge.install(stubborn=False)
    monkeypatch.setenv("SEGROS_HOME", str(judge.home))
    program = judge.home / "judge" / "environment" / "bin" / "python"
    program.write_text("#!/bin/sh\necho no room on the device\nexit 3\n", encoding="utf-8")
    with pytest.raises(PrerequisiteError, match=r"ended with code 3 .*no room on the device"):
        vllm_server.JudgeServer("tiny").start()
