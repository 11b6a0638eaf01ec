"""The five benchmarks of questions run from the command line, on a backbone with its own weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from segros_eval.cli.app import app
from segros_eval.pipeline.store import read_result
from segros_train.backbones.common.weights import SHIPPED_WEIGHTS
from segros_train.files import read_jsonl

NAMES = ("mme", "pope", "gqa", "mmmu", "seed")
HEADLINES = {"mme": "perception", "pope": "accuracy", "gqa": "accuracy", "mmmu": "accuracy", "seed": "accuracy"}
PUBLISHED = Path(__file__).parents[2] / "leaderboards" / "results"


def run(*arguments: str) -> list[dict[str, Any]]:
    done = CliRunner().invoke(app, [*arguments, "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)["cells"]


def test_a_checkpoint_is_asked_every_benchmark_and_what_was_answered_is_not_asked_again(tmp_path: Path) -> None:
    weights = str(SHIPPED_WEIGHTS / "harmon-tiny")
    arguments = ["eval", "--checkpoint", weights, "--method", "none", "--eval", ",".join(NAMES)]
    arguments += ["--limit", "5", "--out", str(tmp_path)]
    cells = {cell["evaluator"]: cell for cell in run(*arguments)}
    assert set(cells) == set(NAMES)
    for name, cell in cells.items():
        assert next(iter(cell["metrics"])) == HEADLINES[name]
        assert cell["protocol"] == f"{name} standard@1"
        assert cell["num_unscored"] == 0 and cell["num_samples"] > 0
        assert cell["num_unparsed"] == round(cell["metrics"]["unparsed"] / 100 * cell["num_samples"])
        assert cell["provenance"]["evaluator"]["rules"] == "standard"
        assert not cell["reused"]
    assert cells["mmmu"]["provenance"]["evaluator"]["multi_image"] == "joined"
    (folder,) = tmp_path.glob("none-harmon-tiny-*")
    answered = {path.name: len(list(read_jsonl(path))) for path in (folder / "responses").glob("*.jsonl")}
    # An answer that was torn off and a result that is gone are made again, and nothing else.
    path = folder / "responses" / "gqa.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join(lines[:-1]) + lines[-1][:20], encoding="utf-8")
    (folder / "evals" / "gqa" / "result.json").unlink()
    again = {cell["evaluator"]: cell for cell in run(*arguments)}
    assert [name for name, cell in again.items() if not cell["reused"]] == ["gqa"]
    assert again["gqa"]["metrics"] == cells["gqa"]["metrics"]
    assert len([line for line in read_jsonl(path) if "answer" in line]) == answered["gqa.jsonl"]


@pytest.mark.parametrize("rules", ["lmms-eval", "vlmevalkit"])
def test_another_protocol_is_chosen_by_name_and_recorded(tmp_path: Path, rules: str) -> None:
    (cell,) = run("run", "--method", "none", "--backbone", "harmon-tiny", "--eval", "pope", "--limit", "2",
                  "--set", f"rules={rules}", "--set", "decoding=logprobs", "--out", str(tmp_path))  # fmt: skip
    assert cell["protocol"].startswith(f"pope {rules}@") and cell["protocol"].endswith("decoding=logprobs")
    (path,) = tmp_path.glob("*/evals/pope/scores.jsonl")
    first = next(iter(read_jsonl(path)))
    assert set(first["raw"]["logprobs"]) == {"Yes", "No"}


@pytest.mark.parametrize(("name", "chance"), [("pope", 50.0), ("seed", 25.0)])
def test_the_published_baseline_of_the_shipped_backbone_beats_chance(name: str, chance: float) -> None:
    results = [read_result(path) for path in PUBLISHED.glob(f"harmon-tiny-none-{name}-*.json")]
    assert results
    for result in results:
        assert result.num_samples >= 1000
        assert result.intervals["accuracy"].low > chance
