"""Every published result stands under the key that the present declarations give it."""

from __future__ import annotations

from pathlib import Path

from segros_eval.pipeline.catalog import load_catalog
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
        if [cell.key for cell in stage.cells] != [result.key]:
            stale.append(f"{result.method} on {result.backbone}, {result.evaluator}: {result.key[:8]}")
    assert not stale, f"planned under other keys now: {stale}. Publish them anew, or lower the version that was raised."
