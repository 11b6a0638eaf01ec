"""Leaderboards: the published structure, one world per table, nothing hidden."""

import csv
import html.parser
import io
import json
import logging
import shutil
from dataclasses import replace

import pytest

from segros_eval.benchmarks.base import Interval, Result
from segros_eval.pipeline.store import write_result
from segros_eval.reporting.layout import agreements
from segros_eval.reporting.leaderboard import (
    BEGIN,
    END,
    check_rendered,
    load_results,
    publish_results,
    render,
    render_paper_table,
    render_summary,
    write_rendered,
)
from segros_eval.reporting.published import Reference, default_reference, load_reference
from segros_eval.reporting.rows import filled_tables
from segros_train.errors import PrerequisiteError

TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")


@pytest.fixture(scope="module")
def reference() -> Reference:
    return load_reference()


def geneval(method="segros", backbone="harmon-0.5b", *, overall=80.0, world="photo", data="midjourney-v6", **changes):
    metrics = {"overall": overall, **dict.fromkeys(TAGS, overall)}
    result = Result(
        method=method,
        backbone=backbone,
        evaluator="geneval",
        metrics=metrics,
        intervals={"overall": Interval(overall - 2, overall + 2, "prompt-clustered bootstrap")},
        num_samples=2212,
        num_unparsed=0,
        num_unscored=0,
        seeds=(0,),
        protocol="geneval@test",
        world=world,
        key=f"{method}-{backbone}-{overall}-{world}",
        provenance={"data": data, "run": f"{method}-{backbone}", "commit": "0123456789abcdef"},
    )
    return replace(result, **changes)


def shapes(method="segros", **changes):
    return geneval(method, "harmon-tiny", world="shapes", data="shapes", **changes)


def table_of(markdown: str, title: str) -> list[list[str]]:
    """Return the cells of the table under a headline, the head first."""
    section = markdown.split(f"# {title}")[1]
    lines = [line for line in section.split("\n#")[0].splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in (lines[0], *lines[2:])]


def row_of(table: list[list[str]], *labels: str) -> dict[str, str]:
    found = [row for row in table[1:] if all(label in row for label in labels)]
    assert len(found) == 1, found
    return dict(zip(table[0], found[0], strict=True))


def test_the_generation_table_has_the_columns_of_the_paper_in_its_order(reference):
    head = table_of(render([], reference, fmt="md"), "Text-to-image generation, photographs")[0]
    columns = ["GenEval: Single", "Two", "Count", "Color", "Position", "Attr.", "Overall", "DPGBench", "CompBench"]
    assert head[:2] == ["UMM", "Method"] and head[-9:] == columns


def test_a_measured_row_stands_below_the_published_row_of_its_cell(reference):
    rows = table_of(render([geneval()], reference, fmt="md"), "Text-to-image generation, photographs")
    place = next(i for i, row in enumerate(rows) if "measured" in row)
    assert rows[place - 1][:2] == ["_Harmon-0.5B_", "_Ours_"] and rows[place][:2] == ["Harmon-0.5B", "Ours"]


def test_a_measured_headline_shows_its_interval_and_counts(reference):
    result = geneval(num_samples=2200, num_unscored=12)
    row = row_of(table_of(render([result], reference, fmt="md"), "Text-to-image generation, photographs"), "measured")
    assert row["Overall"] == "**80.0** [78.0, 82.0]"
    assert (row["n"], row["Unscored"], row["DPGBench"]) == ("2200", "12", "–")


def test_worlds_never_share_a_table(reference):
    tables = filled_tables([geneval(), shapes()], reference)
    for table in tables:
        assert {result.world for result in table.measured} <= {table.world}
        if table.world == "shapes":
            assert {row.source for row in table.rows} == {"measured"}
    worlds = [table.world for table in tables if table.structure.name == "generation"]
    assert worlds == ["photo", "shapes"]


def test_an_unscored_metric_shows_as_unscored_and_a_missing_one_as_a_dash(reference):
    unscored = geneval(
        evaluator="dpgbench", metrics={"overall": None}, intervals={}, num_samples=0, num_unscored=9, key="dpg"
    )
    unscored = replace(unscored, provenance={**unscored.provenance})
    rows = table_of(render([geneval(), unscored], reference, fmt="md"), "Text-to-image generation, photographs")
    row = row_of(rows, "measured")
    assert (row["DPGBench"], row["CompBench"], row["Unscored"]) == ("unscored", "–", "0 / 9")


def test_evaluations_of_one_run_share_a_row_and_those_of_two_runs_do_not(reference):
    dpg = geneval(evaluator="dpgbench", key="dpg")
    assert _measured_rows([geneval(), dpg], reference) == 1
    other = replace(dpg, provenance={**dpg.provenance, "run": "another"})
    assert _measured_rows([geneval(), other], reference) == 2


def _measured_rows(results, reference):
    table = filled_tables(results, reference)[0]
    return sum(row.source == "measured" for row in table.rows)


@pytest.mark.parametrize(
    ("overall", "verdict", "difference"),
    [(80.0, "inside the interval", "−1.5"), (79.0, "outside the interval by 0.5", "−2.5")],
)
def test_a_measured_value_is_compared_with_the_published_one(reference, overall, verdict, difference):
    rows = table_of(render([geneval(overall=overall)], reference, fmt="md"), "Measured against published")
    row = row_of(rows, "geneval/overall")
    assert (row["Published"], row["Difference"], row["Published value"]) == ("81.5", difference, verdict)


@pytest.mark.parametrize(
    "result",
    [
        geneval(data="blip3o-60k"),
        geneval(provenance={"data": "midjourney-v6", "subset": True}),
        shapes(),
        geneval(backbone="harmon-9b"),
    ],
    ids=["other data", "a subset", "another world", "an unpublished backbone"],
)
def test_nothing_is_compared_with_a_number_of_another_cell(reference, result):
    assert agreements(filled_tables([result], reference)) == ()


def test_a_cell_printed_in_several_tables_is_compared_once(reference):
    compared = agreements(filled_tables([geneval()], reference))
    assert [item.column.key for item in compared] == ["geneval/overall"]


def test_runs_on_leaked_data_and_subsets_are_flagged_and_explained(reference):
    leaked = geneval(backbone="harmon-1.5b", data="blip3o-60k")
    partial = geneval("sft", provenance={"data": "midjourney-v6", "subset": True})
    page = render([leaked, partial], reference, fmt="md")
    rows = table_of(page, "Text-to-image generation, photographs")
    assert row_of(rows, "Harmon-1.5B", "measured")["Method"] == "Ours†"
    assert row_of(rows, "Harmon-0.5B", "measured")["Method"] == "SFT‡"
    assert "`†` BLIP3o-60k holds" in page and "`‡` Only part" in page
    base = row_of(rows, "_Harmon-1.5B_", "_w/o SFT_")
    assert "†" not in base["Method"]


def test_a_contradicted_value_is_marked_and_printed_unchanged(reference):
    page = render([], reference, fmt="md")
    row = row_of(table_of(page, "CompBench by category, photographs"), "_OpenUni-3.6B_", "_w/o SFT_")
    assert row["Overall"] == "_78.84≠_"
    assert "OpenUni-3.6B w/o SFT: 78.84 is printed, the mean of the eight categories is 77.48." in page


def test_an_ablation_appears_in_its_own_table_and_not_in_the_main_one(reference):
    tables = filled_tables([shapes(), shapes("segros-hint-10")], reference)
    holding = {table.structure.name: [row.method for row in table.rows] for table in tables if table.world == "shapes"}
    assert holding == {"generation": ["segros"], "hint-ratio": ["segros", "segros-hint-10"]}


def test_a_method_of_ones_own_appears_in_the_main_table_under_its_name(reference):
    rows = table_of(render([shapes("mine")], reference, fmt="md"), "Text-to-image generation, the embedded world")
    assert rows[1][:2] == ["harmon-tiny", "mine"]


def test_a_published_ablation_keeps_the_order_of_print(reference):
    rows = table_of(render([geneval()], reference, fmt="md"), "Share of patches shown as hints, photographs")
    assert [row[0] for row in rows[1:]] == ["_0%°_", "_(lost)_", "_30%°_", "30%°", "_(lost)_", "_(lost)_", "_100%°_"]


class Balanced(html.parser.HTMLParser):
    """Fails on a tag that is not closed, and notes what a page would fetch."""

    VOID = ("meta", "img", "path", "polyline", "br")

    def __init__(self):
        super().__init__()
        self.open, self.fetched, self.rows, self.attributes = [], [], [], set()

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.attributes |= values.keys()
        self.fetched += [values[name] for name in ("src", "href") if name in values]
        if tag == "tr":
            self.rows.append(values.get("class"))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag


def test_the_page_is_well_formed_and_fetches_nothing(reference):
    parser = Balanced()
    parser.feed(render([geneval(), shapes()], reference, fmt="html"))
    assert parser.open == []
    assert parser.fetched and all(place.startswith("#") for place in parser.fetched)
    assert {"measured", "published"} <= set(parser.rows)


def test_a_crafted_name_cannot_script_the_page(reference):
    crafted = '<script>alert(1)</script>"\' onmouseover="alert(2)'
    evaluator = "lmms:<img src=x onerror=alert(3)>"
    result = geneval(crafted, crafted, world="shapes", evaluator=evaluator, metrics={crafted: 1.0, "b": None})
    result = replace(result, intervals={crafted: Interval(0.0, 2.0, crafted)}, protocol=f"`{crafted}`")
    page = render([result], reference, fmt="html")
    assert "&lt;script&gt;alert(1)" in page and "&lt;img src=x onerror" in page
    assert page.count("<script>") == 1 and "<img" not in page
    parser = Balanced()
    parser.feed(page)
    assert parser.open == [] and parser.attributes.isdisjoint({"onmouseover", "onerror"})
    assert all(place.startswith("#") for place in parser.fetched)


def test_an_evaluation_that_the_paper_does_not_have_gets_a_table_like_any_other(reference, board):
    own = shapes("mine", evaluator="lmms:ai2d", metrics={"exact_match": 61.2, "rougeL": 3.0}, key="own")
    own = replace(own, intervals={"exact_match": Interval(58.0, 64.0, "lmms-eval's standard error")})
    page = render([own, shapes()], reference, fmt="md")
    row = row_of(table_of(page, "lmms:ai2d, the embedded world"), "mine")
    assert (row["UMM"], row["exact_match"], row["n"]) == ("harmon-tiny", "**61.2** [58.0, 64.0]", "2212")
    assert "rougeL" not in row
    cells = json.loads(render([own], reference, fmt="json"))["cells"]
    mine = [cell for cell in cells if cell["source"] == "measured"]
    assert [(cell["table"], cell["metric"], cell["low"]) for cell in mine] == [("lmms:ai2d", "exact_match", 58.0)]
    publish_results([own], board / "results")
    assert "other.md" in {path.name for path in write_rendered(board)}
    assert "lmms:ai2d" in (board / "other.md").read_text()


def test_categories_that_a_world_does_not_have_are_no_columns_of_its_table(reference):
    metrics = {"overall": 50.0, "color": 40.0, "shape": 60.0, "complex": None}
    result = shapes(evaluator="compbench", metrics=metrics, num_unscored=2, key="comp")
    head, row = table_of(render([result], reference, fmt="md"), "CompBench by category, the embedded world")[:2]
    assert head[head.index("Source") + 1 : head.index("n")] == ["Color", "Shape", "Complex", "Overall"]
    assert row[head.index("Complex")] == "unscored"


def test_latex_escapes_what_it_would_read_as_commands(reference):
    page = render([shapes("50%_of & #1")], reference, fmt="latex")
    assert r"50\%\_of \& \#1" in page
    assert page.count(r"\begin{tabular}") == page.count(r"\end{tabular}") == page.count(r"\toprule")
    body = page.split(r"\midrule")[1].split(r"\bottomrule")[0].strip().splitlines()
    columns = page.split(r"\begin{tabular}{")[1].split("}")[0]
    assert all(line.count(" & ") == len(columns) - 1 for line in body)
    assert r"\textbf{80.0} [78.0, 82.0]" in page


def test_csv_and_json_hold_every_value_with_what_qualifies_it(reference):
    results = [geneval(num_unscored=3), shapes()]
    rows = list(csv.DictReader(io.StringIO(render(results, reference, fmt="csv"))))
    cells = json.loads(render(results, reference, fmt="json"))["cells"]
    assert len(rows) == len(cells)
    mine = [
        row for row in rows if row["source"] == "measured" and row["metric"] == "overall" and row["world"] == "photo"
    ]
    generation = next(row for row in mine if row["table"] == "generation")
    assert (generation["value"], generation["low"], generation["high"]) == ("80.0", "78.0", "82.0")
    assert (generation["n"], generation["unscored"], generation["key"]) == ("2212", "3", geneval().key)


def test_an_unknown_format_is_refused(reference):
    with pytest.raises(ValueError, match="pdf"):
        render([], reference, fmt="pdf")


def test_results_are_found_in_run_folders_and_in_a_results_folder(tmp_path):
    write_result(tmp_path / "runs" / "segros-x-1" / "evals" / "geneval" / "result.json", geneval())
    publish_results([shapes()], tmp_path / "board" / "results")
    found = load_results(tmp_path / "runs", tmp_path / "board" / "results", tmp_path / "nowhere")
    assert {result.key for result in found} == {geneval().key, shapes().key}


def test_run_folders_below_a_folder_called_results_are_found(tmp_path):
    write_result(tmp_path / "results" / "segros-x-1" / "evals" / "geneval" / "result.json", geneval())
    assert load_results(tmp_path / "results") == [geneval()]


def test_a_result_found_twice_counts_once(tmp_path):
    publish_results([geneval()], tmp_path / "a" / "results")
    publish_results([geneval()], tmp_path / "b" / "results")
    assert load_results(tmp_path / "a" / "results", tmp_path / "b" / "results") == [geneval()]


def test_of_two_results_with_one_key_the_one_with_fewer_unscored_items_stays(tmp_path, caplog):
    worse = geneval(num_unscored=5, metrics={"overall": 70.0})
    publish_results([worse], tmp_path / "a" / "results")
    publish_results([geneval()], tmp_path / "b" / "results")
    with caplog.at_level(logging.WARNING):
        assert load_results(tmp_path / "a" / "results", tmp_path / "b" / "results") == [geneval()]
    assert "same key and other numbers" in caplog.text


def test_a_file_that_is_no_result_is_named(tmp_path):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "broken.json").write_text("{")
    with pytest.raises(PrerequisiteError, match=r"broken\.json"):
        load_results(tmp_path / "results")


@pytest.fixture
def board(tmp_path):
    (tmp_path / "board" / "reference").mkdir(parents=True)
    shutil.copy(default_reference(), tmp_path / "board" / "reference" / "segros.json")
    publish_results([shapes()], tmp_path / "board" / "results")
    (tmp_path / "README.md").write_text(f"# Title\n\n{BEGIN}\nold\n{END}\n\nEnd.\n")
    return tmp_path / "board"


def test_rendered_pages_are_current_until_a_result_changes(board):
    pages = {"generation.md", "understanding.md", "ablations.md", "recipes.md"}
    assert {path.name for path in write_rendered(board)} == {*pages, "README.md"}
    assert check_rendered(board) == [] and write_rendered(board) == []
    publish_results([shapes("sft")], board / "results")
    assert {path.name for path in check_rendered(board)} == {"generation.md", "README.md"}


def test_a_page_edited_by_hand_is_stale(board):
    write_rendered(board)
    with (board / "recipes.md").open("a") as stream:
        stream.write("mine\n")
    assert [path.name for path in check_rendered(board)] == ["recipes.md"]


def test_the_readme_keeps_everything_outside_the_marks(board):
    write_rendered(board)
    text = (board.parent / "README.md").read_text()
    assert text.startswith(f"# Title\n\n{BEGIN}\n") and text.endswith(f"{END}\n\nEnd.\n") and "old" not in text
    assert "| harmon-tiny | Ours |" in text and "_Harmon-0.5B_" in text and "Show-o" not in text


def test_a_readme_without_the_closing_mark_is_refused(board):
    (board.parent / "README.md").write_text(f"{BEGIN}\nrest")
    with pytest.raises(PrerequisiteError, match="closing mark"):
        write_rendered(board)


def test_the_summary_shows_the_measured_world_before_the_published_numbers(reference):
    page = render_summary([shapes()], reference)
    assert page.index("the embedded world") < page.index("photographs")


def test_a_tiny_backbone_is_shown_with_the_published_rows_of_its_family(reference):
    page = render_paper_table([shapes(), geneval()], reference, table="generation", backbones=["harmon-tiny"])
    assert "harmon-tiny" in page and "_Harmon-0.5B_" in page and "_Harmon-1.5B_" in page
    assert "Show-o" not in page and "Measured against" not in page


def test_the_committed_pages_are_current():
    assert check_rendered(default_reference().parent.parent) == []
