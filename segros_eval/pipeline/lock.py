"""One process per run folder."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from segros_train.errors import PrerequisiteError

__all__ = ["run_lock"]


@contextlib.contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Hold a run folder for this process; the system lets go of it however the process ends.

    Raises:
        PrerequisiteError: If another process holds it, or it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stream = (folder / ".lock").open("a+", encoding="utf-8")
    except OSError as error:
        raise PrerequisiteError(
            f"Cannot write to {folder}: {error.strerror}",
            "Choose another folder with --out, or mend its rights.",
        ) from error
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            stream.seek(0)
            raise PrerequisiteError(
                f"Another segros is at work in {folder} ({stream.read().strip() or 'starting'})",
                "Wait for it to end, or choose another folder with --out.",
            ) from error
        stream.truncate(0)
        stream.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        stream.flush()
        yield
