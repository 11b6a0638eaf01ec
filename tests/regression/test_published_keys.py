"""Every published result stands under the key of the present declarations, or says of which older ones it is."""

from __future__ import annotations

from pathlib import Path

from segros_eval.pipeline.catalog import load_catalog
from segros_eval.pipeline.keys import version_of
from segros_eval.pipeline.plan import Request, make_plan
from segros_eval.reporting.leaderboard import load_results

ROOT = Path(__file__).parents[2]


def test_published_results_stand_under_the_keys_that_are_planned_now() -> None:
    catalog, found = load_catalog(ROOT / "tasks"), load_results(ROOT / "leaderboards" / "results")
    assert found
    stale = []
    for result in found:
        request = Request(
            methods=(result.method,),
            backbones=(result.backbone,),
            evaluators=(result.evaluator,),
            seeds=result.seeds,
            limit=result.provenance.get("limit"),
        )
        (stage,) = make_plan(catalog, request).stages
        made_by, present = result.provenance.get("declared_versions", {}), version_of(stage.task.method)
        if made_by.get("method", present) < present:
            # Made by an older version of its method, and says so, until it is published anew.
            assert [cell.key for cell in stage.cells] != [result.key]
        elif [cell.key for cell in stage.cells] != [result.key]:
            stale.append(f"{result.method} on {result.backbone}, {result.evaluator}: {result.key[:8]}")
    assert not stale, f"planned under other keys now: {stale}. Publish them anew, or lower the version that was raised."
