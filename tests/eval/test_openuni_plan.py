"""A frozen language model's answers are planned once per backbone, keyed without the method, and shown so."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from segros_eval.benchmarks.base import Result
from segros_eval.pipeline.catalog import Catalog, load_catalog
from segros_eval.pipeline.plan import Request, RunPlan, make_plan
from segros_eval.pipeline.preflight import check_plan
from segros_eval.reporting.leaderboard import render
from segros_eval.reporting.published import load_reference

TASKS = Path(__file__).parents[2] / "tasks"


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    """Give the declared backbones one evaluation that draws and one that answers."""
    declared = load_catalog(TASKS)
    draws = declared.evaluators["geneval"]
    answers = dataclasses.replace(declared.evaluators["mme"], name="asked", title="Asked")
    return dataclasses.replace(declared, evaluators={"geneval": draws, "asked": answers})


def plan_of(catalog: Catalog, *backbones: str, **changes: Any) -> RunPlan:
    request = Request(methods=("none", "sft", "segros"), backbones=backbones, evaluators=("all",))
    return make_plan(catalog, dataclasses.replace(request, **changes))


def asked(plan: RunPlan) -> list[tuple[str, str]]:
    return [(s.card.name, s.task.name) for s in plan.stages for cell in s.cells if cell.task.name == "asked"]


def test_answers_of_a_frozen_model_are_judged_once_per_size(catalog: Catalog) -> None:
    plan = plan_of(catalog, "openuni-1.6b", "openuni-3.6b", seeds=(0, 1))
    assert asked(plan) == [("openuni-1.6b", "none"), ("openuni-3.6b", "none")]
    drawn = [cell for stage in plan.stages for cell in stage.cells if cell.task.name == "geneval"]
    assert len(drawn) == len(plan.stages) == 12


def test_answers_of_a_trained_model_are_judged_for_every_method(catalog: Catalog) -> None:
    assert len(asked(plan_of(catalog, "harmon-0.5b"))) == 3


def test_the_key_of_frozen_answers_does_not_depend_on_the_method(catalog: Catalog) -> None:
    keys = {
        cell.key
        for method in ("none", "sft", "segros")
        for stage in plan_of(catalog, "openuni-1.6b", methods=(method,)).stages
        for cell in stage.cells
        if cell.task.name == "asked"
    }
    assert len(keys) == 1
    others = plan_of(catalog, "openuni-3.6b", methods=("none",)).stages[0].cells
    assert keys.isdisjoint(cell.key for cell in others)


def test_the_leaderboard_says_that_a_language_model_is_frozen() -> None:
    result = Result(
        method="none",
        backbone="openuni-1.6b",
        evaluator="pope",
        metrics={"accuracy": 80.0},
        intervals={},
        num_samples=10,
        num_unparsed=0,
        num_unscored=0,
        seeds=(0,),
        protocol="pope@0",
        world="photo",
        key="0" * 64,
        provenance={"understanding_is_frozen": True},
    )
    said = "The language model of openuni-1.6b is frozen: no method changes its answers"
    assert said in render([result], load_reference(), fmt="md")
    trained = dataclasses.replace(result, provenance={})
    assert said not in render([trained], load_reference(), fmt="md")


def test_full_size_backbones_lack_nothing_but_weights_and_data_that_are_named(
    catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEGROS_HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
    plan = plan_of(catalog, "openuni-1.6b", methods=("sft",), evaluators=())
    problems = [str(problem) for problem in check_plan(plan, out=tmp_path / "runs", device="cpu")]
    card = catalog.backbones["openuni-1.6b"]
    for file in card.weights:
        assert any(file.repo in line and f"({file.role} of openuni-1.6b)" in line for line in problems)
    assert all("is missing" in line for line in problems)
