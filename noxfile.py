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

WORKERS = ("-n", str(min(os.cpu_count() or 1, 8)), "--dist=loadfile")
"""A file stays with one worker, because its tests share what it loads."""

SEGROS = str(Path(sys.executable).with_name("segros"))


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
    """Run the tests of the default run but those of the other sessions."""
    aside = [f"--ignore=tests/{name}" for name in ("faults", "golden", "judge", "mmdet", "regression", "rehearsal")]
    run(session, "pytest", *aside, *WORKERS, *session.posargs)


@nox.session(**PROJECT)
def regression(session: nox.Session) -> None:
    """Compare with what the original code and this one gave before, and leaderboards with their results."""
    run(session, "pytest", "tests/golden", "tests/regression", *WORKERS, *session.posargs)
    session.run(SEGROS, "leaderboard", "--check", external=True, env=ENV)


@nox.session(**PROJECT)
def faults(session: nox.Session) -> None:
    """Break things: the quick share."""
    run(session, "pytest", "tests/faults", *WORKERS, *session.posargs)


@nox.session(default=False, **PROJECT)
def ci(session: nox.Session) -> None:
    """Run what takes too long for the default run: all faults, the counts at full size, a real vLLM."""
    run(session, "pytest", "tests/faults", "-m", "slow", *WORKERS)
    session.notify("rehearsal")
    session.notify("judge")


@nox.session(default=False, **PROJECT)
def judge(session: nox.Session) -> None:
    """Build vLLM's CPU environment and score T2I-CompBench end to end with a real server of a tiny random model."""
    home = {"SEGROS_HOME": str(Path(session.cache_dir) / "judge"), "SEGROS_TEST_JUDGE": "1", "HF_HUB_OFFLINE": "1"}
    session.run(SEGROS, "judge", "install", "--kind", "cpu", external=True, env={**ENV, **home})
    session.run(sys.executable, "-m", "pytest", "tests/judge", *session.posargs, external=True, env={**ENV, **home})


@nox.session(default=False, **PROJECT)
def rehearsal(session: nox.Session) -> None:
    """Count the memory of every training and draw at full size, without a device."""
    run(session, "pytest", "tests/rehearsal", *WORKERS, *session.posargs)


@nox.session(default=False, **PROJECT)
def gpu(session: nox.Session) -> None:
    """Run the tests that need a CUDA device."""
    run(session, "pytest", "-m", "gpu", *session.posargs)


@nox.session(default=False, **PROJECT)
def mmdet(session: nox.Session) -> None:
    """Build mmdet's environment and compare its Mask2Former with ours on one prepared tensor.

    The environment is the one that `detector = "mmdet"` uses. mmcv's compiled operations are left out: on a CPU its
    Mask2Former does not call them.
    """
    home = Path(os.environ.get("SEGROS_HOME") or Path(session.cache_dir) / "mmdet")
    folder = home / "mmdet" / "environment"
    session.run("uv", "venv", "--allow-existing", "--python", "3.11", str(folder), external=True)
    pinned = ("torch==2.1.2", "numpy<2", "mmcv-lite==2.1.0", "mmdet==3.3.0", "opencv-python-headless<4.12")
    more = ("safetensors", "setuptools<70")
    session.run(
        "uv", "pip", "install", "--no-config", "--python", str(folder / "bin" / "python"), *pinned, *more, external=True
    )
    own = {"SEGROS_HOME": str(home), "SEGROS_TEST_MMDET": "1"}
    session.run(sys.executable, "-m", "pytest", "tests/mmdet", *session.posargs, external=True, env={**ENV, **own})


@nox.session(default=False, **PROJECT)
def mplug(session: nox.Session) -> None:
    """Record mPLUG's goldens anew with modelscope's own classes, in an environment of theirs, and compare with ours."""
    folder = Path(session.cache_dir) / "modelscope"
    golden = Path(session.cache_dir) / "golden"
    session.run("uv", "venv", "--allow-existing", "--python", "3.11", str(folder), external=True)
    pinned = ("modelscope==1.40.2", "torch==2.1.2", "torchvision==0.16.2", "transformers==4.30.2", "timm==0.9.16")
    more = ("numpy<2", "addict", "einops", "pyyaml", "safetensors", "pillow", "setuptools<70")
    python = str(folder / "bin" / "python")
    session.run("uv", "pip", "install", "--no-config", "--python", python, *pinned, *more, external=True)
    session.run(python, "tests/mplug/record.py", str(golden / "mplug"), external=True, env=ENV)
    run(session, "pytest", "tests/golden/test_mplug.py", "--golden", str(golden), *session.posargs)


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
