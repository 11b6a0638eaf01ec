"""DPG-Bench against the official script and RecA's, over recorded answers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from segros_eval.benchmarks.base import JudgeReply, JudgeRequest, Tools
from segros_eval.benchmarks.dpgbench.benchmark import DPGBench
from segros_eval.benchmarks.dpgbench.rules import CATEGORIES, KINDS, Answered, Summary, read_graphs, summarise
from segros_eval.benchmarks.fetch import _git_blob
from segros_eval.statistics.bootstrap import point_estimates
from segros_train.files import file_sha256

CELL_PX = 8
GRID_RUNS = ("official_pic4", "official_pic1", "official_pic3", "first_row_fixed_pic4")


class Recorded:
    """Answers as recorded: a cell's colour says which item and which picture of it is asked about."""

    def __init__(self, items: Sequence[Mapping[str, Any]]) -> None:
        self.items = items
        self.by_text = [{one["question"]: str(one["qid"]) for one in item["questions"]} for item in items]

    def ask(self, requests: Sequence[JudgeRequest]) -> list[JudgeReply]:
        replies = []
        for request in requests:
            high, low, cell = request.image.read().getpixel((1, 1))
            item = high * 256 + low
            replies.append(JudgeReply(self.items[item]["answers"][cell][self.by_text[item][request.turns[0]]]))
        return replies


def color_of(item: int, cell: int) -> tuple[int, int, int]:
    return item // 256, item % 256, cell


@pytest.fixture(scope="module")
def folder(golden_set: Callable[[str], Path]) -> Path:
    return golden_set("dpg")


@pytest.fixture(scope="module")
def recorded(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "cases.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def data(folder: Path, recorded: Mapping[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return official files: the set's table of questions, and prompts for its items."""
    home = tmp_path_factory.mktemp("dpgbench")
    (home / "dpg_bench.csv").write_bytes((folder / "questions.csv").read_bytes())
    prompts = {f"{item['item_id']}.txt": f"prompt of {item['item_id']}" for item in recorded["items"]}
    (home / "prompts.json").write_text(json.dumps(prompts), encoding="utf-8")
    return home


@pytest.fixture(scope="module")
def grids(recorded: Mapping[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("grids")
    for number, item in enumerate(recorded["items"]):
        grid = Image.new("RGB", (2 * CELL_PX, 2 * CELL_PX))
        for cell in range(4):
            row, column = divmod(cell, 2)
            grid.paste(
                color_of(number, cell), (column * CELL_PX, row * CELL_PX, (column + 1) * CELL_PX, (row + 1) * CELL_PX)
            )
        grid.save(root / f"{item['item_id']}.png")
    return root


def evaluator(data: Path, **options: Any) -> DPGBench:
    return DPGBench(
        prompts_sha256=file_sha256(data / "prompts.json"),
        questions_git_blob=_git_blob(data / "dpg_bench.csv"),
        **options,
    )


def run(bench: DPGBench, root: Path, data: Path, recorded: Mapping[str, Any]) -> list[Any]:
    found = bench.read_folder(root, "photo", data)
    assert found.faults == ()
    return bench.score(found.samples, found.paths, Tools(judge=Recorded(recorded["items"])))


def answered(recorded: Mapping[str, Any], *, num_pictures: int, file_per_picture: bool) -> list[Answered]:
    graphs = {item["item_id"]: item for item in recorded["items"]}
    whole = []
    for name, item in graphs.items():
        questions = _questions(item)
        for cell in range(num_pictures):
            yes = {int(number): text == "yes" for number, text in item["answers"][cell].items()}
            file = f"{name}_{cell}" if file_per_picture else name
            whole.append(Answered(file, questions, yes, heads_table=name == recorded["first_csv_item"]))
    return whole


def _questions(item: Mapping[str, Any]) -> Any:
    from segros_eval.benchmarks.dpgbench.rules import Question

    return tuple(
        Question(
            one["qid"],
            one["tuple"].partition("(")[0].strip(),
            one["question"],
            tuple(int(parent) for parent in one["dependency"] if int(parent)),
        )
        for one in item["questions"]
    )


def compare(summary: Summary, expected: Mapping[str, Any]) -> None:
    """Compare all that a run printed; files are named without their extension."""
    near = {"rel": 0, "abs": 1e-9}
    files = {Path(name).stem: value for name, value in expected["per_file"].items()}
    assert dict(summary.files) == pytest.approx({name: value["average"] for name, value in files.items()}, **near)
    for name, value in files.items():
        # RecA's script scores its one picture four times.
        once = value["scores"][: len(summary.pictures[name])]
        assert list(summary.pictures[name]) == pytest.approx(once, **near)
        assert len(set(value["scores"])) == 1 or len(once) == len(value["scores"])
    assert summary.score is not None
    assert 100 * summary.score == pytest.approx(expected["score"], **near)
    assert {k: 100 * v for k, v in summary.shares("kind").items()} == pytest.approx(expected["l1"], **near)
    assert {k: 100 * v for k, v in summary.shares("category").items()} == pytest.approx(expected["l2"], **near)
    foreign = {"notaprompt1"}
    assert {Path(name).stem for name in expected["failed"]} - foreign == set(summary.failed)


@pytest.mark.parametrize("name", GRID_RUNS)
def test_a_run_over_grids_gives_every_number_of_the_script(name: str, recorded: Mapping[str, Any]) -> None:
    num_pictures = int(name[-1])
    pictures = answered(recorded, num_pictures=num_pictures, file_per_picture=False)
    summary = summarise(pictures, drop_first_row=name.startswith("official"), last_picture_only=True)
    compare(summary, recorded["expected"][name])


def test_a_run_over_single_files_gives_every_number_of_recas_script(recorded: Mapping[str, Any]) -> None:
    pictures = answered(recorded, num_pictures=4, file_per_picture=True)
    summary = summarise(pictures, drop_first_row=True, last_picture_only=False)
    compare(summary, recorded["expected"]["reca_single_files"])


@pytest.mark.parametrize("num_pictures", (4, 3, 1))
def test_a_folder_of_grids_scored_officially_gives_the_scripts_numbers(
    num_pictures: int, recorded: Mapping[str, Any], data: Path, grids: Path
) -> None:
    bench = evaluator(data, images_per_prompt=num_pictures)
    scores = run(bench, grids, data, recorded)
    expected = recorded["expected"][f"official_pic{num_pictures}"]
    metrics = point_estimates(bench.metrics, scores)
    assert next(iter(metrics)) == "overall"
    assert metrics["overall"] == pytest.approx(expected["score"], rel=0, abs=1e-9)
    kinds = {kind: metrics[kind] for kind in KINDS if kind in expected["l1"]}
    assert kinds == pytest.approx(expected["l1"], rel=0, abs=1e-9)
    categories = {name: metrics[name.replace(" ", "")] for name in CATEGORIES if name in expected["l2"]}
    assert categories == pytest.approx(expected["l2"], rel=0, abs=1e-9)


def test_the_mended_rules_stand_beside_the_official_ones(recorded: Mapping[str, Any], data: Path, grids: Path) -> None:
    official, fixed = (evaluator(data, rules=rules) for rules in ("official", "fixed"))
    scores = run(official, grids, data, recorded)
    a, b = point_estimates(official.metrics, scores), point_estimates(fixed.metrics, scores)
    first_row_fixed = recorded["expected"]["first_row_fixed_pic4"]["score"]
    assert a["fixed_overall"] == b["overall"] == pytest.approx(first_row_fixed, rel=0, abs=1e-9)
    assert b["official_overall"] == a["overall"]
    assert official.protocol != fixed.protocol


def test_the_table_is_read_as_the_script_reads_it(folder: Path, recorded: Mapping[str, Any]) -> None:
    graphs = read_graphs(folder / "questions.csv")
    assert next(iter(graphs)) == recorded["first_csv_item"]
    assert graphs == {item["item_id"]: _questions(item) for item in recorded["items"]}
