"""Run a judge server for as long as the process that started it lives.

Started as a program by `judge_server.py`, as the leader of a session that the server and all its workers belong to. It
ends the whole group, kindly and after a grace time by force, when it is told to (SIGTERM) or when its parent is gone,
however that ended: nothing that a process does at its own end is done when it is killed. It imports nothing but the
standard library, so that it costs little.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

__all__ = ["watch"]

POLL_SECONDS = 0.25


def watch(parent: int, grace_seconds: float, command: Sequence[str]) -> int:
    """Run `command` until it ends, or end its process group; return its exit code.

    Args:
        parent: Process whose end ends the command.
        grace_seconds: Time between the request to end and the end by force.
        command: Program and arguments.
    """
    told: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: told.append(number))
    server = subprocess.Popen(command)
    while not told and os.getppid() == parent:
        try:
            # What is left of the group is for the parent to end: it learns of the server's end by ours.
            return server.wait(POLL_SECONDS)
        except subprocess.TimeoutExpired:
            continue
    os.killpg(0, signal.SIGTERM)
    end = time.monotonic() + grace_seconds
    while time.monotonic() < end and server.poll() is None:
        time.sleep(POLL_SECONDS)
    os.killpg(0, signal.SIGKILL)  # This process too.
    return 1


if __name__ == "__main__":
    sys.exit(watch(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]))
