"""Standard errors against lmms-eval, over recorded scores."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from statistics import fmean

import pytest

from segros_eval.statistics.clustered import clustered_stderr, mean_stderr


def test_stats_means_and_standard_errors_are_those_of_lmms_eval(golden_set: Callable[[str], Path]) -> None:
    cases = json.loads((golden_set("stats") / "cases.json").read_text(encoding="utf-8"))["cases"]
    assert cases
    for case in cases:
        assert fmean(case["scores"]) == pytest.approx(case["mean"], rel=1e-12)
        assert mean_stderr(case["scores"]) == pytest.approx(case["stderr"], rel=1e-12)
        assert clustered_stderr(case["scores"], case["clusters"]) == pytest.approx(case["clustered_stderr"], rel=1e-12)
