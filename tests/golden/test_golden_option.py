"""Where goldens are read from: the committed sets, or the folder of `--golden`."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

GOLDEN = Path(__file__).parent


def run(*arguments: str | Path) -> tuple[int, str]:
    """Return the exit status and the output of a run of pytest over the given tests."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *map(str, arguments)]
    done = subprocess.run(command, cwd=GOLDEN.parents[1], capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout + done.stderr


def test_a_folder_of_goldens_that_does_not_exist_ends_the_run(tmp_path: Path) -> None:
    status, output = run(GOLDEN / "test_stats.py", "--golden", tmp_path / "none")
    assert status == pytest.ExitCode.USAGE_ERROR
    assert f"--golden asks for the folder {tmp_path / 'none'}, which does not exist" in output


@pytest.mark.parametrize("test", ["test_stats.py", "test_showo_sampling.py"])
def test_a_set_that_the_folder_lacks_fails_and_says_what_is_there(tmp_path: Path, test: str) -> None:
    (tmp_path / "other").mkdir()
    status, output = run(GOLDEN / test, "--golden", tmp_path)
    name = "stats" if test == "test_stats.py" else "showo"
    assert status == pytest.ExitCode.TESTS_FAILED
    assert f"--golden asks for the set {name} in {tmp_path}, which holds other" in output
    assert "skipped" not in output and "passed" not in output


def test_a_group_that_the_set_of_the_folder_lacks_fails(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / "data" / "showo", tmp_path / "showo")
    cases = json.loads((tmp_path / "showo" / "cases.json").read_text(encoding="utf-8"))
    cases["tensors"] = {name: of for name, of in cases["tensors"].items() if not name.startswith("e.")}
    (tmp_path / "showo" / "cases.json").write_text(json.dumps(cases), encoding="utf-8")
    status, output = run(GOLDEN / "test_showo_sampling.py", "-k", "absent", "--golden", tmp_path)
    assert status == pytest.ExitCode.TESTS_FAILED
    assert "showo has no group e, it holds" in output and "skipped" not in output and "passed" not in output


def test_a_set_of_the_folder_is_read_from_there(tmp_path: Path) -> None:
    (tmp_path / "stats").mkdir()
    cases = (GOLDEN / "data" / "stats" / "cases.json").read_text(encoding="utf-8")
    (tmp_path / "stats" / "cases.json").write_text(cases, encoding="utf-8")
    assert run(GOLDEN / "test_stats.py", "--golden", tmp_path)[0] == pytest.ExitCode.OK
    (tmp_path / "stats" / "cases.json").write_text('{"cases": []}', encoding="utf-8")
    assert run(GOLDEN / "test_stats.py", "--golden", tmp_path)[0] == pytest.ExitCode.TESTS_FAILED


def test_a_set_of_this_project_is_read_from_the_committed_copy_and_the_run_says_so(tmp_path: Path) -> None:
    status, output = run(GOLDEN / "test_mplug.py", "-k", "prepared", "--golden", tmp_path)
    assert status == pytest.ExitCode.OK
    assert f"golden sets not in {tmp_path}, read from the committed copy: mplug" in output


def test_without_the_option_the_committed_sets_are_used() -> None:
    status, output = run(GOLDEN / "test_stats.py")
    assert status == pytest.ExitCode.OK and "1 passed" in output and "committed copy" not in output
