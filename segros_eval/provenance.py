"""Where a number comes from: versions, commit, machine."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

__all__ = ["commit", "software", "versions"]

PACKAGES = ("segros", "torch", "transformers", "accelerate", "numpy", "pillow", "opencv-python-headless")


def software() -> dict[str, Any]:
    """Return the commit of the code, and the versions of what computes numbers."""
    return {"commit": commit(), "versions": versions()}


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that compute numbers."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


@cache
def commit() -> str | None:
    """Return the commit of the checkout the code runs from, with `+changes` where files differ; None outside one."""
    root = Path(__file__).parent.parent
    if not (root / ".git").exists():
        return None
    head = _git(root, "rev-parse", "HEAD")
    changed = _git(root, "status", "--porcelain", "--untracked-files=no", "--", "segros_train", "segros_eval")
    return f"{head}+changes" if head and changed else head


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True)
    except (FileNotFoundError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
