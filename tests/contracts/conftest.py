"""Runs every contract test over everything declared in `tasks/`: a new declaration is tested by being there.

A test asks for a `train_task`, a `trained_task` (one with a method), a `card`, a `tiny_card` (with weights), an
`eval_task`, a `data_card`, a `recipe_name` or a `paper_table`, and runs once for each. What `tests/outside` adds keeps
the same contracts: its method, its benchmark of photographs, and its family of micro weights.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from segros_eval.pipeline.catalog import Catalog, load_catalog

TASKS = Path(__file__).parents[2] / "tasks"
OUTSIDE = Path(__file__).parents[1] / "outside"


@cache
def declared() -> Catalog:
    """Return what the repository declares, and what is added from outside."""
    return load_catalog(TASKS, *(OUTSIDE / kind for kind in ("method", "benchmark", "family")))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrize a test by the declarations its arguments name."""
    catalog = declared()
    kinds = {
        "train_task": list(catalog.methods.values()),
        "trained_task": [task for task in catalog.methods.values() if task.method is not None],
        "card": list(catalog.backbones.values()),
        "tiny_card": [card for card in catalog.backbones.values() if not card.weights],
        "eval_task": list(catalog.evaluators.values()),
        "data_card": list(catalog.data.values()),
        "recipe_name": list(catalog.recipes),
        "paper_table": list(catalog.tables.values()),
    }
    for argument in (name for name in kinds if name in metafunc.fixturenames):
        values = kinds[argument]
        assert values, f"nothing is declared that could be a {argument}"
        metafunc.parametrize(argument, values, ids=[getattr(value, "name", value) for value in values], scope="module")


@pytest.fixture(scope="session")
def catalog() -> Catalog:
    return declared()
