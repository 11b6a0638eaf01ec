"""The command lets idle threads sleep, and says so before torch reads it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from segros_eval.cli.app import PASSIVE_THREADS

COMMAND = "import sys; from segros_eval.cli import main; sys.argv = ['segros', 'doctor']; main()"


def runtime_settings(**environment: str) -> dict[str, str]:
    """Run a command that imports torch, and return what torch's OpenMP runtime says it has read."""
    own = {name: value for name, value in os.environ.items() if name not in PASSIVE_THREADS}
    done = subprocess.run(
        [sys.executable, "-c", COMMAND],
        env=own | {"OMP_DISPLAY_ENV": "VERBOSE"} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    pairs = (line.split(" = ") for line in done.stderr.splitlines() if " = " in line)
    return {name.split()[-1]: value.strip("'") for name, value in pairs}


@pytest.fixture
def needs_gomp() -> None:
    import torch

    if "OpenMP 201511" not in torch.__config__.parallel_info() or sys.platform != "linux":
        pytest.skip("torch has another OpenMP runtime here, which tells its settings otherwise")


@pytest.mark.usefixtures("needs_gomp")
def test_the_runtime_that_torch_loads_has_read_that_threads_wait_passively() -> None:
    found = runtime_settings()
    assert (found["OMP_WAIT_POLICY"], found["GOMP_SPINCOUNT"]) == ("PASSIVE", PASSIVE_THREADS["GOMP_SPINCOUNT"])


@pytest.mark.usefixtures("needs_gomp")
def test_what_the_user_says_of_threads_stays() -> None:
    found = runtime_settings(OMP_WAIT_POLICY="ACTIVE", GOMP_SPINCOUNT="7")
    assert (found["OMP_WAIT_POLICY"], found["GOMP_SPINCOUNT"]) == ("ACTIVE", "7")


def test_every_setting_stands_before_torch_is_imported() -> None:
    code = f"""
import os, sys
class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print([os.environ.get(one) for one in {list(PASSIVE_THREADS)!r}], file=sys.stderr)
            os._exit(77)
sys.meta_path.insert(0, Watch())
{COMMAND}
"""
    own = {name: value for name, value in os.environ.items() if name not in PASSIVE_THREADS}
    done = subprocess.run([sys.executable, "-c", code], env=own, capture_output=True, text=True, check=False)
    assert done.returncode == 77, done.stderr
    assert str(list(PASSIVE_THREADS.values())) in done.stderr


def test_importing_the_library_leaves_the_environment_alone() -> None:
    code = (
        "import os; before = dict(os.environ); import segros_eval.cli, segros_train.training.loop; assert "
        "os.environ == before"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
