"""The questions of a benchmark are the same in every form its files are published in, and damage is named."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
from question_files import FORMS, SIZES, asked, png, same_picture, write_files, write_parquet, write_tsv

from segros_eval.benchmarks.fetch import HubFiles, fetch_hub, hub_commit
from segros_eval.benchmarks.vqa.check import check_questions
from segros_eval.benchmarks.vqa.data import Question, question_set
from segros_eval.benchmarks.vqa.mme import MME
from segros_eval.benchmarks.vqa.pictures import ScenePicture, open_picture
from segros_eval.benchmarks.vqa.pope import POPE
from segros_eval.pipeline.catalog import load_catalog
from segros_train.errors import PrerequisiteError

FIELDS = {
    "mme": ("question_id", "question", "answer", "category"),
    "pope": ("question", "answer", "image_source", "category"),
    "gqa": ("id", "imageId", "question", "answer"),
    "mmmu": ("id", "question", "options", "answer", "question_type"),
    "seed": ("question_id", "question", "choice_a", "choice_b", "choice_c", "choice_d", "answer", "data_id"),
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def read(benchmark: str, folder: Path, num_rows: int | None = None) -> list[Question]:
    return question_set(benchmark, "photo", folder, num_rows=num_rows, shapes_size=1)


def told(benchmark: str, questions: list[Question]) -> dict[str, tuple[str, ...]]:
    return {item: tuple(str(record[name]) for name in FIELDS[benchmark]) for item, record, _ in questions}


@pytest.mark.parametrize("benchmark", FORMS)
def test_every_form_gives_the_same_items_with_the_same_ids_and_pictures(benchmark: str, tmp_path: Path) -> None:
    expected = asked(benchmark)
    forms = {}
    for form in FORMS[benchmark]:
        write_files(tmp_path / form, benchmark, form)
        forms[form] = read(benchmark, tmp_path / form, len(expected))
    first = told(benchmark, forms["hub"])
    assert sorted(first.values()) == sorted(tuple(str(q.record[name]) for name in FIELDS[benchmark]) for q in expected)
    scenes = {(str(q.record["question"]), q.scenes) for q in expected}
    for questions in forms.values():
        assert told(benchmark, questions) == first
        for _, record, pictures in questions[::3]:
            shown = [open_picture(picture) for picture in pictures]
            fitting = [places for text, places in scenes if text == record["question"] and len(places) == len(shown)]
            assert any(
                all(same_picture(a, ScenePicture(*b).open()) for a, b in zip(shown, places, strict=True))
                for places in fitting
            )


def test_a_set_of_another_size_is_refused_unless_it_is_asked_for(tmp_path: Path) -> None:
    write_files(tmp_path, "pope", "hub")
    with pytest.raises(PrerequisiteError, match=r"24 questions, expected 9000.*num_rows"):
        list(POPE().samples("photo", tmp_path, (0,)))
    assert len(list(POPE(num_rows=None).samples("photo", tmp_path, (0,)))) == 24


def test_damaged_rows_are_named_and_counted_together(tmp_path: Path) -> None:
    rows = [dict(q.record) | {"image": png(q.scenes[0])} for q in asked("mme")]
    rows[0]["answer"], rows[3]["question"], rows[4]["category"] = "maybe", "", "weather"
    rows[5]["image"] = None
    write_parquet(tmp_path / "data" / "test-0.parquet", rows)
    with pytest.raises(PrerequisiteError) as caught:
        read("mme", tmp_path)
    told_of = str(caught.value)
    assert "4 damaged rows" in told_of
    for part in ("row 0 (the right answer is 'maybe')", "row 3 (question missing)", "'weather'", "row 5 (no picture)"):
        assert part in told_of


def test_a_picture_of_mme_without_two_questions_is_refused_by_name(tmp_path: Path) -> None:
    rows = [dict(q.record) | {"image": png(q.scenes[0])} for q in asked("mme")][1:]
    write_parquet(tmp_path / "test.parquet", rows)
    with pytest.raises(PrerequisiteError, match=rf"1 pictures without exactly two questions: {rows[0]['question_id']}"):
        list(MME(num_rows=None).samples("photo", tmp_path, (0,)))


def test_a_row_that_occurs_twice_is_refused_by_its_id(tmp_path: Path) -> None:
    rows = [dict(q.record) | {"image": png(q.scenes[0])} for q in asked("pope")]
    write_parquet(tmp_path / "test.parquet", [*rows, rows[0]])
    with pytest.raises(PrerequisiteError, match=r"1 ids that occur more than once: adversarial/scene_000000/"):
        read("pope", tmp_path)


def test_a_table_that_is_cut_off_is_named(tmp_path: Path) -> None:
    path = tmp_path / "pope.tsv"
    write_tsv(
        path, [{"index": 0, "question": 'Is "it"\nthere?', "answer": "Yes", "category": "random", "image": "A" * 99}]
    )
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.rindex(b'"')])
    with pytest.raises(PrerequisiteError, match="cut off"):
        read("pope", tmp_path)


def test_an_empty_folder_says_what_may_stand_there(tmp_path: Path) -> None:
    with pytest.raises(PrerequisiteError, match="segros data fetch gqa"):
        read("gqa", tmp_path)
    with pytest.raises(PrerequisiteError, match="does not exist"):
        read("gqa", tmp_path / "nowhere")


def test_the_check_names_a_damaged_picture_once_and_counts_the_questions_it_takes_along(tmp_path: Path) -> None:
    write_files(tmp_path, "gqa", "own")
    with zipfile.ZipFile(tmp_path / "gqa.zip") as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    broken = next(name for name in content if name.endswith(".jpg"))
    (tmp_path / "gqa.zip").unlink()
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data[:200] if name == broken else data)
    catalog = load_catalog(Path(__file__).parents[2] / "tasks")
    task = catalog.evaluators["gqa"]
    small = type(task)(**{**vars(task), "evaluator": type(task.evaluator)(num_rows=3 * SIZES["gqa"])})
    found = check_questions(small, catalog.benchmarks["gqa"], tmp_path)
    assert found.num_questions == 9
    (fault,) = found.faults
    assert broken in fault and "(3 questions)" in fault


def test_the_check_names_a_table_that_is_not_the_published_one(tmp_path: Path) -> None:
    write_files(tmp_path, "pope", "tsv")
    (tmp_path / "pope.tsv").rename(tmp_path / "POPE.tsv")
    catalog = load_catalog(Path(__file__).parents[2] / "tasks")
    found = check_questions(catalog.evaluators["pope"], catalog.benchmarks["pope"], tmp_path)
    assert any("POPE.tsv: md5 is" in fault for fault in found.faults)


def test_the_hub_is_fetched_at_the_commit_of_the_first_time(tmp_path: Path) -> None:
    files, asked_for = HubFiles("nobody/nothing", ("data/*.parquet",)), []
    commits = iter(["a" * 40, "b" * 40])
    for _ in range(2):
        fetch_hub(
            files,
            tmp_path,
            resolve=lambda repo: next(commits),
            download=lambda repo, commit, patterns, folder: asked_for.append((repo, commit, patterns)),
        )
    assert asked_for == [("nobody/nothing", "a" * 40, ("data/*.parquet",))] * 2
    assert hub_commit(tmp_path) == "a" * 40
    assert json.loads((tmp_path / "hub.json").read_text())["repo"] == "nobody/nothing"


def test_a_hub_that_cannot_be_reached_says_where_files_may_be_put(tmp_path: Path) -> None:
    def unreachable(repo: str) -> str:
        raise ConnectionError("no route to host")

    with pytest.raises(PrerequisiteError, match=r"no route to host.*TSV"):
        fetch_hub(HubFiles("nobody/nothing", ("*",)), tmp_path, resolve=unreachable)
    assert hub_commit(tmp_path) is None
