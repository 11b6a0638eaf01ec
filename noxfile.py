"""Checks of the project: `uv run nox` runs all of them on a machine with nothing but Python and uv.

Sessions run in the environment that `uv run` has just synchronised, instead of one environment each: the pinned
versions are the same, and a CUDA build of torch is installed once, not five times. Sessions that need another
interpreter get an environment of their own, made by uv.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "uv"
nox.options.error_on_missing_interpreters = True

PROJECT = {"venv_backend": "none"}
"""Run in the environment of the interpreter that runs nox."""

ENV = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
"""One thread per worker: two workers on two cores are faster than one worker with two threads."""


def run(session: nox.Session, *command: str) -> None:
    """Run a Python module of the project's environment."""
    session.run(sys.executable, "-m", *command, external=True, env=ENV)


@nox.session(**PROJECT)
def lint(session: nox.Session) -> None:
    """Check style, layout and types."""
    run(session, "ruff", "check")
    run(session, "ruff", "format", "--check")
    run(session, "mypy")


@nox.session(**PROJECT)
def tests(session: nox.Session) -> None:
    """Run the tests, all but the goldens; a file stays with one worker, because its tests share what it loads."""
    workers = str(min(os.cpu_count() or 1, 8))
    run(session, "pytest", "--ignore=tests/golden", "-n", workers, "--dist=loadfile", *session.posargs)


@nox.session(**PROJECT)
def parity(session: nox.Session) -> None:
    """Compare with the numbers of the original code; `-- --golden DIR` takes another set."""
    run(session, "pytest", "tests/golden", *session.posargs)


@nox.session(**PROJECT)
def leaderboards(session: nox.Session) -> None:
    """Check that every rendered leaderboard says what its results say."""
    segros = Path(sys.executable).with_name("segros")
    session.run(str(segros), "leaderboard", "--check", *session.posargs, external=True, env=ENV)


@nox.session(default=False, **PROJECT)
def gpu(session: nox.Session) -> None:
    """Run the tests that need a CUDA device."""
    run(session, "pytest", "-m", "gpu", *session.posargs)


@nox.session(default=False, **PROJECT)
def wheel(session: nox.Session) -> None:
    """Build the distribution files into `dist/`."""
    session.run("uv", "build", *session.posargs, external=True)


@nox.session(default=False, python=["3.11", "3.12", "3.13"])
def versions(session: nox.Session) -> None:
    """Run the tests on every supported Python, each in an environment of its own."""
    session.run_install(
        "uv",
        "sync",
        "--active",
        f"--python={session.virtualenv.location}",
        env={"VIRTUAL_ENV": session.virtualenv.location},
    )
    session.run("python", "-m", "pytest", *session.posargs, env=ENV)


@nox.session(default=False)
def lmms(session: nox.Session) -> None:
    """Run the tests that need lmms-eval, in an environment of their own."""
    session.run_install(
        "uv",
        "sync",
        "--active",
        "--extra=lmms",
        f"--python={session.virtualenv.location}",
        env={"VIRTUAL_ENV": session.virtualenv.location},
    )
    session.run("python", "-m", "pytest", "tests/eval/test_harness.py", *session.posargs, env=ENV)
