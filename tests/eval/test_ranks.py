"""Two processes make what one makes: each item once, one document, one result."""

from __future__ import annotations

import json
from pathlib import Path

import cli_world

from segros_eval.pipeline.store import read_result


def test_two_processes_train_draw_and_score_one_run(tmp_path: Path) -> None:
    world = cli_world.build(tmp_path)
    done = world.segros("run", "--method", "sft", "--backbone", "micro", "--eval", "geneval", "--json", num_ranks=2)
    assert done.returncode == 0, done.stderr
    (cell,) = json.loads(done.stdout)["cells"]
    assert cell["num_samples"] == cli_world.NUM_IMAGES
    num_updates, per_process = 2, 2 + 2
    assert cell["provenance"]["training"]["num_samples"] == 2 * num_updates * per_process
    folder = tmp_path / cell["folder"]
    assert read_result(folder / "evals" / "geneval" / "result.json").key == cell["key"]
    lines = (folder / "responses" / "images" / "manifest.jsonl").read_text().splitlines()
    assert len(lines) == len({json.loads(line)["file"] for line in lines}) == cli_world.NUM_IMAGES
