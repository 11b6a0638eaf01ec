"""Golden sets: folders of numbers recorded from the original code, below `--golden`.

A test reads its set's folder from `golden_set`. A test marked `golden_cases(set, group)` runs once for every case
of a group, where tensors are named `group.case.what`; case names come from the folder.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from bounds import doubled


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker of parametrised goldens."""
    config.addinivalue_line("markers", "golden_cases(set, group): run once per case of a group of a golden set")


@pytest.fixture
def in_float64() -> Iterator[None]:
    """Compute in float64 where the code asks for at least float32."""
    with doubled():
        yield


@pytest.fixture(scope="session")
def golden_set(pytestconfig: pytest.Config) -> Callable[[str], Path]:
    """Give the folder (or file) of a set by name; skip where it is absent."""

    def find(name: str) -> Path:
        path = pytestconfig.getoption("--golden") / name
        if not path.exists():
            pytest.skip(f"no golden set {path}")
        return path

    return find


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrise `case` by the names that the set's `cases.json` holds."""
    marker = metafunc.definition.get_closest_marker("golden_cases")
    if marker is None:
        return
    name, group = marker.args
    path = metafunc.config.getoption("--golden") / name / "cases.json"
    tensors = json.loads(path.read_text(encoding="utf-8"))["tensors"] if path.is_file() else ()
    cases = dict.fromkeys(key.split(".")[1] for key in tensors if key.startswith(f"{group}."))
    absent = pytest.mark.skip(reason=f"the golden set {path.parent} has no group {group}")
    metafunc.parametrize("case", list(cases) or [pytest.param("absent", marks=absent)])
