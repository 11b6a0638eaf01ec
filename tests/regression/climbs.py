"""Follow a tiny run call by call: what its plan enters, and where training calls back up into evaluation.

Usage: `python tests/regression/climbs.py`. Prints the numbers below, and each climb.

A climb is a call of `segros_eval` code whose nearest caller of this project, whatever libraries lie between, is
`segros_train` code: a callback that is handed down counts as often as it is called. The plan enters a file when it
calls into it for the first time, and returns when it calls into a file that it had left for another.
"""

from __future__ import annotations

import os
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).parents[2]
OWN = ("segros_train", "segros_eval", "tasks")
FEW = ("optimizer_steps=2", "recipe.batch_size=2", "i2t_batch_size=2", "warmup_steps=0", "num_steps=2")


@dataclass
class Trace:
    """What was called.

    Attributes:
        calls: Caller and callee of every call within the project, in order; None where nobody of the project called.
    """

    calls: list[tuple[str | None, str]] = field(default_factory=list)

    @property
    def climbs(self) -> Counter[tuple[str, str]]:
        """Count the calls from training up into evaluation, by caller and callee."""
        return Counter(
            (caller, callee)
            for caller, callee in self.calls
            if caller is not None and caller.startswith("segros_train/") and callee.startswith("segros_eval/")
        )

    @property
    def files(self) -> list[str]:
        """List the files that are entered, in order."""
        return list(dict.fromkeys(_file(callee) for _, callee in self.calls))

    @property
    def num_returns(self) -> int:
        """Count the calls into a file that was left for another."""
        path = [_file(callee) for _, callee in self.calls]
        changes = [file for before, file in zip([None, *path], path, strict=False) if file != before]
        return len(changes) - len(set(changes))

    @contextmanager
    def follow(self) -> Iterator[None]:
        """Take down the calls of every thread, as a context."""
        sys.setprofile(self._note)
        threading.setprofile(self._note)
        try:
            yield
        finally:
            sys.setprofile(None)
            threading.setprofile(None)

    def _note(self, frame: FrameType, event: str, argument: Any) -> None:
        if event != "call" or (callee := _place(frame)) is None or frame.f_code.co_name == "<module>":
            return
        above = frame.f_back
        while above is not None and _own_file(above.f_code.co_filename) is None:
            above = above.f_back
        self.calls.append((above and _place(above), callee))


def tiny_run(folder: Path, *, backbone: str = "show-o-tiny", method: str = "segros") -> tuple[Trace, Trace]:
    """Follow a run of two updates and a few images and answers, to its leaderboard.

    Args:
        folder: Where the run folders go.
        backbone: A tiny one.
        method: A way to train.

    Returns:
        The trace of the plan, and that of the whole run with it.
    """
    from segros_eval.pipeline.catalog import load_catalog
    from segros_eval.pipeline.plan import Request, make_plan
    from segros_eval.pipeline.preflight import check_plan
    from segros_eval.pipeline.progress import Silent
    from segros_eval.pipeline.runner import run_plan
    from segros_eval.reporting.leaderboard import load_results, render
    from segros_eval.reporting.published import load_reference

    overrides = FEW if method != "none" else FEW[-1:]
    request = Request((method,), (backbone,), ("compbench", "pope"), overrides=overrides, limit=2)
    catalog = load_catalog()
    planning, carrying_out = Trace(), Trace()
    with planning.follow():
        plan = make_plan(catalog, request)
    with carrying_out.follow():
        assert check_plan(plan, out=folder, device="cpu") == []
        outcomes = run_plan(plan, out=folder, device="cpu", listener=Silent())
        render(load_results(folder), load_reference(), fmt="md")
    assert all(outcome.result is not None for outcome in outcomes), [outcome.failure for outcome in outcomes]
    return planning, Trace([*planning.calls, *carrying_out.calls])


@cache
def _own_file(filename: str) -> str | None:
    path = Path(filename)
    if not path.is_relative_to(ROOT):
        return None
    name = path.relative_to(ROOT).as_posix()
    return name if name.startswith(tuple(f"{package}/" for package in OWN)) else None


def _place(frame: FrameType) -> str | None:
    file = _own_file(frame.f_code.co_filename)
    return file and f"{file}:{frame.f_code.co_qualname}"


def _file(place: str) -> str:
    return place.partition(":")[0]


def main() -> None:
    """Print the numbers."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SEGROS_HOME"] = folder
        planning, whole = tiny_run(Path(folder) / "runs")
    print(f"The plan enters {len(planning.files)} files and returns {planning.num_returns} times to one it had left.")
    print(f"The whole run enters {len(whole.files)} files and climbs {whole.climbs.total()} times.")
    for (caller, callee), count in whole.climbs.items():
        print(f"  {count} x  {caller} -> {callee}")


if __name__ == "__main__":
    main()
