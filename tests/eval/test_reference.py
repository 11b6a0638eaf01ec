"""The published numbers: a transcription that agrees with itself wherever the print does."""

import json
import subprocess
import sys

import pytest

from segros_eval.reporting.published import PublishedTable, Reference, default_reference, load_reference
from segros_train.errors import PrerequisiteError

TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
CATEGORIES = ("color", "shape", "texture", "spatial", "non_spatial", "numeracy", "3d_spatial", "complex")


@pytest.fixture(scope="module")
def reference() -> Reference:
    return load_reference()


def means(table: PublishedTable, evaluator: str, parts: tuple[str, ...]) -> dict[tuple[str, str | None], tuple]:
    """Return the printed overall and the mean of its parts by row, where all parts are printed."""
    found = {}
    for row in table.rows:
        values = [row.cells[f"{evaluator}/{part}"].value for part in parts]
        if None not in values:
            overall = row.cells[f"{evaluator}/overall"].value
            found[row.backbone, row.method] = overall, sum(values) / len(values)
    return found


@pytest.mark.parametrize(
    ("table", "evaluator", "parts"),
    [("generation", "geneval", TAGS), ("compbench-categories", "compbench", CATEGORIES)],
)
def test_an_overall_is_the_mean_of_its_parts_but_for_exactly_the_recorded_rows(reference, table, evaluator, parts):
    # Half a unit of the last printed digit on either side: tags have one decimal, some overalls two.
    off = {
        row: (printed, round(mean, 2))
        for row, (printed, mean) in means(reference.table(table), evaluator, parts).items()
        if abs(printed - mean) > 0.05
    }
    recorded = {
        (entry.backbone, entry.method): (entry.printed, entry.recomputed)
        for entry in reference.inconsistencies
        if entry.table == table
    }
    assert off == recorded


def test_every_paper_table_is_there_with_all_its_rows(reference):
    assert {table.name: len(table.rows) for table in reference.tables} == {
        "generation": 24,
        "compbench-categories": 6,
        "understanding": 4,
        "hint-ratio": 6,
        "text-filter": 4,
        "hint-context-swaps": 4,
        "loss-targets": 3,
        "noise-scale": 5,
        "hint-transfer": 4,
        "temperature": 0,
        "recipes": 6,
    }


def test_a_cell_printed_in_two_tables_has_one_value_up_to_rounding(reference):
    main = reference.table("generation")
    compared = 0
    for table in reference.tables:
        for row in table.rows:
            first = main.row(row.backbone, row.method) if row.method else None
            if table is main or first is None:
                continue
            for key in row.cells.keys() & first.cells.keys():
                a, b = row.cells[key].value, first.cells[key].value
                assert a == b or round(a, 1) == round(b, 1) or abs(a - b) <= 0.05, (table.name, row.method, key)
                compared += 1
    assert compared >= 30


def test_published_labels_are_either_printed_or_say_why_they_are_believed(reference):
    ratios = [row.labels[0] for row in reference.table("hint-ratio").rows]
    assert [label.text for label in ratios] == ["0%", None, "30%", None, None, "100%"]
    assert all(label.inferred for label in ratios if label.text)
    pope = [column for column in reference.table("understanding").columns if column.evaluator == "pope"]
    assert len(pope) == 2 and all(column.inferred for column in pope)


def test_inferred_hint_ratios_show_the_values_of_the_tables_they_are_inferred_from(reference):
    ratio, loss = reference.table("hint-ratio"), reference.table("loss-targets")
    for method in ("sft", "segros"):
        assert ratio.row("harmon-0.5b", method).cells == loss.row("harmon-0.5b", method).cells


def test_stars_mark_every_sft_row_and_the_starred_cells(reference):
    rows = reference.table("generation").rows
    assert {row.method for row in rows if row.starred} == {"sft"} and sum(row.starred for row in rows) == 6
    cells = {(row.backbone, row.method, key) for row in rows for key, cell in row.cells.items() if cell.starred}
    assert cells == {
        ("show-o-256", "reca", "compbench/overall"),
        ("show-o-512", "reca", "geneval/overall"),
        ("openuni-1.6b", "reca", "geneval/overall"),
        ("openuni-1.6b", "reca", "compbench/overall"),
        ("openuni-3.6b", "reca", "compbench/overall"),
        ("harmon-0.5b", "reca", "compbench/overall"),
        ("harmon-1.5b", "reca", "compbench/overall"),
    }


def test_the_gains_the_text_claims_are_those_of_the_table(reference):
    understanding = reference.table("understanding")
    base, ours = (understanding.row("harmon-1.5b", method).cells for method in ("none", "segros"))
    assert ours["mme/perception"].value - base["mme/perception"].value == 22
    assert round(ours["mmmu/accuracy"].value - base["mmmu/accuracy"].value, 1) == 1.3
    generation = reference.table("generation")
    better = [
        generation.row(backbone, "segros").cells["geneval/overall"].value
        > generation.row(backbone, "reca").cells["geneval/overall"].value
        for backbone in dict.fromkeys(row.backbone for row in generation.rows)
    ]
    assert better.count(True) == 5


def test_only_training_on_leaked_data_is_flagged(reference):
    assert reference.leaks("blip3o-60k", "segros", "geneval")
    assert not reference.leaks("blip3o-60k", "none", "geneval")
    assert not reference.leaks("blip3o-60k", "segros", "dpgbench")
    assert not reference.leaks("midjourney-v6", "segros", "geneval")
    assert not reference.leaks(None, "segros", "geneval")


def test_values_of_other_sources_differ_from_the_printed_ones_they_stand_beside(reference):
    for entry in reference.elsewhere:
        printed = [
            row.cells[entry.key].value
            for table in reference.tables
            if (row := table.row(entry.backbone, entry.method)) and entry.key in row.cells
        ]
        assert printed and entry.value not in printed


def test_an_unknown_table_is_refused_with_the_nearest_name(reference):
    with pytest.raises(PrerequisiteError, match="Did you mean 'generation'"):
        reference.table("generatoin")


@pytest.mark.parametrize("damage", ["{", "[]", '{"paper": "x"}'])
def test_a_file_that_is_no_reference_is_refused_by_name(tmp_path, damage):
    path = tmp_path / "mine.json"
    path.write_text(damage)
    with pytest.raises(PrerequisiteError, match="mine.json"):
        load_reference(path)


def test_a_row_with_a_cell_too_few_is_refused(tmp_path):
    document = json.loads(default_reference().read_text(encoding="utf-8"))
    document["tables"][0]["rows"][0]["cells"].pop()
    path = tmp_path / "short.json"
    path.write_text(json.dumps(document))
    with pytest.raises(PrerequisiteError, match=r"short\.json"):
        load_reference(path)


def test_reading_and_rendering_the_published_numbers_imports_no_torch():
    code = (
        "import sys; from segros_eval.reporting.leaderboard import render; from "
        "segros_eval.reporting.published import load_reference; "
        "render([], load_reference(), fmt='html'); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
