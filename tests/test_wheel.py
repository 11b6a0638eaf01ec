"""What a user gets who installs the wheel and never sees the repository."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAX_WHEEL_MIB = 20


@dataclass(frozen=True)
class Installation:
    """An environment with the wheel, and an empty folder to work in."""

    wheel: Path
    environment: Path
    folder: Path

    def run(self, *command: str) -> str:
        """Run a program of the environment in the empty folder and return what it prints."""
        program, *arguments = command
        return checked([str(self.environment / "bin" / program), *arguments], cwd=self.folder)


def checked(command: Sequence[str], *, cwd: Path) -> str:
    outside = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(command, cwd=cwd, env=outside, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def build_wheel(directory: Path) -> Path:
    """Build the wheel with the build backend of this environment, which needs no network."""
    checked([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(directory)], cwd=ROOT)
    (wheel,) = directory.glob("segros-*.whl")
    return wheel


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Installation:
    uv = os.environ.get("UV") or shutil.which("uv")
    if uv is None:
        pytest.skip("uv is not on the PATH")
    home = tmp_path_factory.mktemp("wheel")
    wheel = build_wheel(home / "dist")
    environment, folder = home / "environment", home / "empty"
    folder.mkdir()
    checked([uv, "venv", "--quiet", "--no-project", "--python", sys.executable, str(environment)], cwd=folder)
    python = environment / "bin" / "python"
    install = [uv, "pip", "install", "--quiet", "--offline", "--no-deps", "--python", str(python), str(wheel)]
    checked(install, cwd=folder)
    share_dependencies(python)
    return Installation(wheel=wheel, environment=environment, folder=folder)


def share_dependencies(python: Path) -> None:
    """Let an environment see this one's packages.

    Python does not follow the .pth files of a folder that a .pth file names, so the checkout, which this
    environment knows by one, stays out of sight.
    """
    place = checked([str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], cwd=python.parent)
    here = dict.fromkeys(sysconfig.get_path(kind) for kind in ("purelib", "platlib"))
    Path(place.strip(), "shared.pth").write_text("\n".join(here) + "\n", encoding="utf-8")


def test_the_command_runs_in_an_empty_folder_and_lists_what_is_declared(installation: Installation) -> None:
    listing = installation.run("segros", "list")
    for name in ("harmon-tiny", "segros", "geneval"):
        assert name in listing


@pytest.mark.parametrize(
    "expression",
    [
        "segros_eval.pipeline.catalog.find_tasks() / 'backbones.py'",
        "segros_eval.reporting.published.default_reference()",
        "segros_train.backbones.common.weights.SHIPPED_WEIGHTS / 'harmon-tiny' / 'config.json'",
        "segros_train.backbones.common.weights.SHIPPED_WEIGHTS / 'harmon-tiny' / 'model.safetensors'",
    ],
)
def test_the_wheel_brings_its_own_files(installation: Installation, expression: str) -> None:
    code = (
        f"import segros_eval.pipeline.catalog, segros_eval.reporting.published, "
        f"segros_train.backbones.common.weights; print({expression})"
    )
    path = Path(installation.run("python", "-c", code).strip())
    assert path.is_relative_to(installation.environment)
    assert path.is_file()


def test_a_shipped_model_is_read_without_a_download(installation: Installation) -> None:
    code = (
        "from segros_eval.pipeline.catalog import load_catalog; from segros_train.backbones.loading import load;"
        "print(type(load(load_catalog().backbones['harmon-tiny'])).__name__)"
    )
    assert installation.run("python", "-c", code).strip() == "Harmon"


def test_the_wheel_is_small_and_holds_its_licence(installation: Installation) -> None:
    assert installation.wheel.stat().st_size / 2**20 < MAX_WHEEL_MIB
    assert list(installation.environment.glob("lib/python*/site-packages/segros-*.dist-info/licenses/LICENSE"))


def test_a_run_is_planned_from_the_wheel_alone(installation: Installation) -> None:
    plan = ("--method", "none,segros", "--backbone", "harmon-tiny", "--eval", "geneval", "--limit", "1", "--dry-run")
    assert "harmon-tiny" in installation.run("segros", "run", *plan)
