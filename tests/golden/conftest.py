"""Golden sets: folders of numbers recorded from the original code, committed or below `--golden`.

A test reads its set's folder from `golden_set`. A test marked `golden_cases(set, group)` runs once for every case
of a group, where tensors are named `group.case.what`; case names come from the folder.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from bounds import doubled


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker of parametrised goldens."""
    config.addinivalue_line("markers", "golden_cases(set, group): run once per case of a group of a golden set")
    config.addinivalue_line("markers", "absent_group(reason): its golden set has no case for it")


@pytest.fixture
def in_float64() -> Iterator[None]:
    """Compute in float64 where the code asks for at least float32."""
    with doubled():
        yield


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrise `case` by the names that the set's `cases.json` holds; `golden_set` tells where it is absent."""
    marker = metafunc.definition.get_closest_marker("golden_cases")
    if marker is None:
        return
    name, group = marker.args
    path = metafunc.config.getoption("--golden") / name / "cases.json"
    if not path.is_file():
        metafunc.parametrize("case", ["absent"])
        return
    tensors = json.loads(path.read_text(encoding="utf-8"))["tensors"]
    cases = dict.fromkeys(key.split(".")[1] for key in tensors if key.startswith(f"{group}."))
    groups = ", ".join(sorted({key.split(".")[0] for key in tensors})) or "nothing"
    absent = pytest.mark.absent_group(f"the golden set {path.parent} has no group {group}, it holds {groups}")
    metafunc.parametrize("case", list(cases) or [pytest.param("absent", marks=absent)])


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip the test of a group that the committed set leaves out; fail where `--golden` was to give it."""
    if marker := item.get_closest_marker("absent_group"):
        (reason,) = marker.args
        if item.config.getoption("--golden") == Path(__file__).parent / "data":
            pytest.skip(reason)
        pytest.fail(f"--golden: {reason}; record the group, or choose other tests", pytrace=False)
