"""Folders in GenEval's layout: written and read again, and no fault of one passes for a number."""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from segros_eval.benchmarks.base import EvalTask, Tools
from segros_eval.benchmarks.geneval.benchmark import GenEval
from segros_eval.benchmarks.geneval.folder import read_geneval_folder, write_geneval_folder
from segros_eval.pipeline.score import score_folder
from segros_eval.pipeline.store import ImageStore, result_from_json, result_to_json
from segros_eval.shapes.reader import SceneReader
from segros_eval.statistics.bootstrap import point_estimates
from segros_train.data.shapes.world import render, sample_scene
from segros_train.errors import PrerequisiteError
from segros_train.types import GenerationSettings

EVALUATOR = GenEval(images_per_prompt=3, shapes_prompts_per_tag=2)
TASK = EvalTask(name="geneval", title="GenEval", evaluator=EVALUATOR, worlds=("photo", "shapes"))
TOOLS = Tools(detector=SceneReader())
PROMPTS = EVALUATOR.prompts("shapes", None)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a whole folder in the official layout: 12 prompts with 3 scenes each."""
    root = tmp_path_factory.mktemp("export")
    store = ImageStore(root / "store", settings=GenerationSettings(num_steps=1), backbone_key="none")
    samples = list(EVALUATOR.samples("shapes", None, [0]))
    for index, sample in enumerate(samples):
        store.put(sample, render(sample_scene(5, index, tag=sample.metadata["tag"])))
    write_geneval_folder(root / "images", [(sample, store.path(sample)) for sample in samples])
    return root / "images"


@pytest.fixture()
def folder(exported: Path, tmp_path: Path) -> Path:
    """Return a copy that a test may damage."""
    return Path(shutil.copytree(exported, tmp_path / "images"))


def kinds(folder: Path) -> Counter[str]:
    return Counter(fault.kind for fault in score_folder(TASK, folder, tools=TOOLS, world="shapes").faults)


def unscored(folder: Path) -> dict[str, str]:
    scores = score_folder(TASK, folder, tools=TOOLS, world="shapes").scores
    return {score.item_id: score.reason for score in scores if score.value is None}


def test_the_layout_is_the_official_one(exported: Path) -> None:
    assert sorted(path.name for path in exported.iterdir()) == [f"{n:05d}" for n in range(12)]
    assert sorted(path.name for path in (exported / "00011").rglob("*.png")) == ["00000.png", "00001.png", "00002.png"]
    record = (exported / "00011" / "metadata.jsonl").read_text()
    assert json.loads(record) == PROMPTS[11]
    assert record.count("\n") == 1


def test_a_whole_folder_has_no_fault_and_scores_like_the_images_themselves(exported: Path) -> None:
    found = score_folder(TASK, exported, tools=TOOLS, world="shapes")
    assert found.faults == ()
    samples = list(EVALUATOR.samples("shapes", None, [0]))
    images = [render(sample_scene(5, index, tag=sample.metadata["tag"])) for index, sample in enumerate(samples)]
    assert list(found.scores) == EVALUATOR.score(samples, images, TOOLS)
    assert found.result.num_samples == 36
    assert found.result.metrics == point_estimates(EVALUATOR.metrics, found.scores)
    assert found.result.provenance["versions"]["torch"] and found.result.provenance["detector"] == "SceneReader"
    assert result_from_json(json.loads(json.dumps(result_to_json(found.result)))) == found.result


def test_a_prompt_is_known_by_its_record_and_not_by_the_folders_name(folder: Path) -> None:
    expected = score_folder(TASK, folder, tools=TOOLS, world="shapes")
    (folder / "00000").rename(folder / "900")
    (folder / "00001").rename(folder / "00000")
    found = score_folder(TASK, folder, tools=TOOLS, world="shapes")
    assert found.result.metrics == expected.result.metrics
    assert {score.item_id: score for score in found.scores} == {score.item_id: score for score in expected.scores}


def test_a_missing_prompt_is_named_and_each_of_its_images_unscored(folder: Path) -> None:
    shutil.rmtree(folder / "00004")
    faults = score_folder(TASK, folder, tools=TOOLS, world="shapes").faults
    assert [(fault.kind, fault.item) for fault in faults] == [("missing prompt", PROMPTS[4]["prompt"])]
    assert list(unscored(folder)) == ["00004/missing-1", "00004/missing-2", "00004/missing-3"]


def test_images_short_of_the_number_asked_for_are_unscored(folder: Path) -> None:
    (folder / "00002" / "samples" / "00001.png").unlink()
    assert kinds(folder) == {"too few images": 1}
    assert unscored(folder) == {"00002/missing-1": "too few images: 2 of 3 images"}


def test_a_prompt_without_any_image_is_no_prompt_without_a_fault(folder: Path) -> None:
    shutil.rmtree(folder / "00002" / "samples")
    assert kinds(folder) == {"too few images": 1}
    assert len(unscored(folder)) == 3


@pytest.mark.parametrize("damage", ["truncated", "empty", "text"])
def test_a_broken_image_is_named_and_unscored(folder: Path, damage: str) -> None:
    path = folder / "00003" / "samples" / "00002.png"
    path.write_bytes({"truncated": path.read_bytes()[:-500], "empty": b"", "text": b"hello"}[damage])
    (fault,) = score_folder(TASK, folder, tools=TOOLS, world="shapes").faults
    assert (fault.kind, fault.item) == ("unreadable image", "00003/samples/00002.png")
    assert list(unscored(folder)) == ["00003/00002"]


def resized(path: Path, size: tuple[int, int]) -> None:
    with Image.open(path) as image:
        image.resize(size).save(path)


def test_an_image_of_another_size_than_most_is_named_and_unscored(folder: Path) -> None:
    resized(folder / "00003" / "samples" / "00002.png", (64, 80))
    (fault,) = score_folder(TASK, folder, tools=TOOLS, world="shapes").faults
    assert (fault.kind, fault.item) == ("wrong size", "00003/samples/00002.png")
    assert "(64, 80)" in fault.detail
    assert list(unscored(folder)) == ["00003/00002"]


def test_images_of_another_size_than_is_asked_for_are_unscored_though_all_are_alike(folder: Path) -> None:
    with Image.open(folder / "00000" / "samples" / "00000.png") as image:
        side = image.width
    found = [score_folder(TASK, folder, tools=TOOLS, world="shapes", side_px=px) for px in (side, side + 1)]
    assert [one.result.num_unscored for one in found] == [0, 36]
    assert {fault.kind for fault in found[1].faults} == {"wrong size"}


def test_where_no_size_is_that_of_most_images_none_is_scored_and_the_option_is_named(folder: Path) -> None:
    paths = sorted(folder.rglob("*.png"))
    for path in paths[: len(paths) // 2]:
        resized(path, (64, 64))
    found = score_folder(TASK, folder, tools=TOOLS, world="shapes")
    assert [fault.kind for fault in found.faults] == ["wrong size"] * 36 and "--side-px" in found.faults[0].detail
    assert (found.result.num_samples, found.result.num_unscored) == (0, 36)


def test_a_copy_of_an_image_counts_once(folder: Path) -> None:
    samples = folder / "00003" / "samples"
    shutil.copy(samples / "00000.png", samples / "00002.png")
    assert unscored(folder) == {"00003/00002": "duplicate image: byte for byte 00000.png"}


def test_the_same_image_for_two_prompts_is_no_copy(folder: Path) -> None:
    shutil.copy(folder / "00003" / "samples" / "00000.png", folder / "00004" / "samples" / "00000.png")
    assert kinds(folder) == {}


def test_a_foreign_prompt_is_unscored(folder: Path) -> None:
    shutil.copytree(folder / "00003", folder / "00099")
    record = {"tag": "colors", "include": [{"class": "circle", "count": 1}], "prompt": "a photo of a holiday"}
    (folder / "00099" / "metadata.jsonl").write_text(json.dumps(record))
    assert kinds(folder) == {"foreign prompt": 1}
    assert set(unscored(folder)) == {f"folder-00099/0000{n}" for n in range(3)}


def test_a_prompt_given_twice_counts_once(folder: Path) -> None:
    shutil.copytree(folder / "00003", folder / "00099")
    assert kinds(folder) == {"foreign prompt": 1}
    assert score_folder(TASK, folder, tools=TOOLS, world="shapes").result.num_samples == 36


@pytest.mark.parametrize("record", [None, "", "{", "[1]", '{"tag": "colors"}'])
def test_a_folder_without_a_record_is_named_and_its_prompt_missing(folder: Path, record: str | None) -> None:
    path = folder / "00003" / "metadata.jsonl"
    path.unlink()
    if record is not None:
        path.write_text(record)
    assert kinds(folder) == {"no record": 1, "missing prompt": 1}


def test_other_names_of_digits_and_more_images_are_taken_and_other_files_are_not(folder: Path) -> None:
    samples = folder / "00003" / "samples"
    (samples / "00000.png").rename(samples / "7.png")
    render(sample_scene(6, 0)).save(samples / "0008.png")
    render(sample_scene(6, 1)).save(samples / "grid.png")
    (folder / "notes").mkdir()
    found = read_geneval_folder(folder, prompts=PROMPTS, images_per_prompt=3)
    assert found.faults == ()
    names = {path.name for path in found.paths if path.parent == samples}
    assert names == {"7.png", "0008.png", "00001.png", "00002.png"}


def test_no_fault_ever_becomes_a_wrong_image(folder: Path) -> None:
    shutil.rmtree(folder / "00004")
    broken = folder / "00003" / "samples" / "00002.png"
    broken.write_bytes(broken.read_bytes()[:100])
    before = {score.item_id: score.value for score in score_folder(TASK, folder, tools=TOOLS, world="shapes").scores}
    result = score_folder(TASK, folder, tools=TOOLS, world="shapes").result
    assert (result.num_samples, result.num_unscored) == (32, 4)
    known = [value for value in before.values() if value is not None]
    assert result.metrics["image_accuracy"] == pytest.approx(100 * sum(known) / 32)


def test_the_key_follows_the_images(exported: Path, folder: Path) -> None:
    original, copied = (score_folder(TASK, path, tools=TOOLS, world="shapes").result.key for path in (exported, folder))
    assert original == copied
    render(sample_scene(9, 9)).save(folder / "00003" / "samples" / "00002.png")
    assert score_folder(TASK, folder, tools=TOOLS, world="shapes").result.key != original


def test_progress_counts_every_image(exported: Path) -> None:
    told: list[int] = []
    score_folder(TASK, exported, tools=TOOLS, world="shapes", advance=told.append)
    assert sum(told) == 36


def test_a_folder_of_another_layout_says_what_was_expected(tmp_path: Path) -> None:
    (tmp_path / "cat.png").write_bytes(b"")
    with pytest.raises(PrerequisiteError, match=r"00000/metadata\.jsonl"):
        score_folder(TASK, tmp_path, tools=TOOLS, world="shapes")


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(PrerequisiteError, match="There is no folder .*nowhere"):
        score_folder(TASK, tmp_path / "nowhere", tools=TOOLS, world="shapes")


def test_photographs_need_a_detector_and_the_message_says_so(exported: Path) -> None:
    with pytest.raises(PrerequisiteError, match="none for photographs"):
        score_folder(TASK, exported, tools=Tools())


def test_the_order_of_prompts_in_the_set_renumbers_items_but_moves_no_number(exported: Path) -> None:
    shuffled = random.Random(1).sample(PROMPTS, len(PROMPTS))
    found = [read_geneval_folder(exported, prompts=prompts, images_per_prompt=3) for prompts in (PROMPTS, shuffled)]
    metrics = [point_estimates(EVALUATOR.metrics, EVALUATOR.score(part.samples, part.paths, TOOLS)) for part in found]
    assert metrics[0] == pytest.approx(metrics[1])
