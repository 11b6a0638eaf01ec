"""What methods, families and the loop compute changes only together with a declared version."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from traces import FAMILIES, METHODS, RECORDED, low_trace, trace, verdict, versions

from segros_eval.pipeline.catalog import Catalog, load_catalog
from segros_train import equations, masking
from segros_train.methods import reca
from segros_train.training import loop

TASKS = Path(__file__).parents[2] / "tasks"


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return load_catalog(TASKS)


def judged(catalog: Catalog, method: str, family: str, folder: Path) -> str:
    """Return what is wrong with a trace made now."""
    task, name = catalog.methods[method], f"{method} on {family}"
    found = {"versions": versions(task, family), "trace": trace(task, family, folder)}
    return verdict(name, found, read_recorded().get(name))


def read_recorded() -> dict[str, Any]:
    return json.loads(RECORDED.read_text(encoding="utf-8")) if RECORDED.exists() else {}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", METHODS)
def test_a_method_trains_a_family_to_the_losses_of_its_version(
    catalog: Catalog, method: str, family: str, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    task = catalog.methods[method]
    found = {"versions": versions(task, family), "trace": trace(task, family, tmp_path)}
    compare(f"{method} on {family}", found, is_recording=pytestconfig.getoption("--record"))


@pytest.mark.parametrize("family", FAMILIES)
def test_segros_trains_a_family_in_bf16_by_chunks_to_the_losses_of_its_version(
    catalog: Catalog, family: str, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    task = catalog.methods["segros"]
    found = {"versions": versions(task, family), "trace": low_trace(task, family, tmp_path)}
    compare(f"segros on {family} in bf16", found, is_recording=pytestconfig.getoption("--record"))


def compare(name: str, found: dict[str, Any], *, is_recording: bool) -> None:
    """Hold a trace to the recorded one, after recording it where it is new and that is asked."""
    recorded = read_recorded()
    is_new = name not in recorded or recorded[name]["versions"] != found["versions"]
    if is_new and is_recording:
        recorded[name] = found
        RECORDED.write_text(json.dumps(recorded, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    fault = verdict(name, found, recorded.get(name))
    assert not fault, fault


@pytest.mark.parametrize(
    ("method", "family", "module", "name", "plant"),
    [
        pytest.param(
            "segros", "showo", equations, "grounding_scores", lambda f: lambda attention, keep: -f(attention, keep)
        ),
        pytest.param("segros", "showo", masking, "top_indices", lambda f: masking.bottom_indices),
        pytest.param("drop-loss", "showo", masking, "top_mask", lambda f: masking.bottom_mask),
        pytest.param(
            "reca",
            "showo",
            reca,
            "native_mask",
            lambda f: lambda *given, **drawn: f(*given, **drawn).roll(1, 1),
        ),
        pytest.param("sft", "showo", loop, "learning_rate", lambda f: lambda recipe, step: f(recipe, step + 1)),
    ],
)
def test_a_planted_change_is_seen(
    catalog: Catalog,
    method: str,
    family: str,
    module: Any,
    name: str,
    plant: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, name, plant(getattr(module, name)))
    assert "other losses" in judged(catalog, method, family, tmp_path)


def test_a_changed_trace_is_accepted_with_its_version_alone() -> None:
    old = {"versions": {"method": 1, "family": 1}, "trace": [[1.0, 2.0]]}
    moved = {"versions": {"method": 1, "family": 1}, "trace": [[1.0, 2.0 + 1e-3]]}
    raised = {"versions": {"method": 2, "family": 1}, "trace": [[1.0, 2.0 + 1e-3]]}
    assert verdict("m", old, old) == ""
    assert "raise the version" in verdict("m", moved, old)
    assert "was recorded for" in verdict("m", raised, old)
    assert "not recorded" in verdict("m", old, None)
