"""Finished work is taken up only where its key and the code it ran through are the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from segros_eval.benchmarks.geneval.benchmark import GenEval
from segros_eval.benchmarks.vqa.pope import POPE
from segros_eval.pipeline import keys
from segros_eval.pipeline.catalog import load_catalog
from segros_eval.pipeline.reuse import (
    Code,
    begin,
    changed,
    code_of,
    evaluation_modules,
    read_code,
    training_modules,
    write_code,
)
from segros_train.methods.segros import SeGroS
from segros_train.methods.sft import SFT

CARD = load_catalog(Path(__file__).parents[2] / "tasks").backbones["harmon-tiny"]
SOURCE = '''"""Text."""
import math

def size(x):
    """More text."""
    # A remark.
    return math.sqrt(x) + 1
'''


def with_source(code: Code, name: str, old: str, new: str) -> Code:
    assert old in code.sources[name], f"{name} no longer holds {old!r}"
    return Code({**code.sources, name: code.sources[name].replace(old, new)})


@pytest.mark.parametrize(
    ("old", "new", "counts"),
    [
        ("More text.", "Other text.", False),
        ("A remark.", "Another.", False),
        ("import math\n", "import math\n\n\n", False),
        ("+ 1", "+ 2", True),
        ("def size(x)", "def size(x, y=0)", True),
    ],
)
def test_syntax_counts_and_prose_does_not(old: str, new: str, counts: bool) -> None:
    before, after = Code({"m": SOURCE}), Code({"m": SOURCE.replace(old, new)})
    assert changed(before, after) == (["m"] if counts else [])
    assert (before.digest != after.digest) == counts


def test_a_closure_holds_the_method_the_family_and_their_readers_and_no_other_family() -> None:
    names = set(code_of(*training_modules(CARD, SeGroS())).sources)
    assert {
        "segros_train.methods.segros",
        "segros_train.methods.grounding",
        "segros_train.equations",
        "segros_train.training.loop",
        "segros_train.masking",
        "segros_train.backbones.harmon.diffusion",
        "segros_train.backbones.common.answering",
        "segros_train.data.sources.generation",
    } <= names
    assert not [name for name in names if "openuni" in name or "showo" in name or name.startswith("segros_eval")]


def test_an_edited_method_changes_its_own_training_alone() -> None:
    segros, sft = (code_of(*training_modules(CARD, method)) for method in (SeGroS(), SFT()))
    assert "segros_train.methods.segros" not in sft.sources
    assert changed(segros, with_source(segros, "segros_train.methods.segros", "HINT_RATIO = 0.3", "HINT_RATIO = 0.4"))


def test_a_reader_of_pictures_belongs_to_the_code_of_every_benchmark() -> None:
    for evaluator in (GenEval(), POPE()):
        code = code_of(*evaluation_modules(evaluator))
        grey = with_source(code, "segros_eval.benchmarks.images", '.convert("RGB")', '.convert("L")')
        assert changed(code, grey) == ["segros_eval.benchmarks.images"]


def test_a_benchmark_does_not_run_through_another() -> None:
    assert "segros_eval.benchmarks.vqa.pope" not in code_of(*evaluation_modules(GenEval())).sources
    assert "segros_eval.benchmarks.geneval.detector.mask2former" not in code_of(*evaluation_modules(POPE())).sources


def test_the_users_own_modules_belong_to_a_closure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_method.py").write_text("import own_helper\nimport json\n", encoding="utf-8")
    (tmp_path / "own_helper.py").write_text("X = 1\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    assert set(code_of("own_method").sources) == {"own_method", "own_helper"}


def test_work_of_the_same_code_goes_on(tmp_path: Path) -> None:
    folder, superseded = tmp_path / "train", tmp_path / "superseded"
    code = Code({"m": SOURCE})
    assert begin(folder, code, superseded=superseded) == ""
    (folder / "work").write_text("half", encoding="utf-8")
    assert begin(folder, Code({"m": SOURCE.replace("Text", "Prose")}), superseded=superseded) == ""
    assert (folder / "work").is_file() and not superseded.exists()


def test_work_of_other_code_is_moved_aside_and_the_module_named(tmp_path: Path) -> None:
    folder, superseded = tmp_path / "train", tmp_path / "superseded"
    for number in (1, 2):
        begin(folder, Code({"m": SOURCE}), superseded=superseded)
        (folder / "work").write_text("half", encoding="utf-8")
        said = begin(folder, Code({"m": SOURCE.replace("+ 1", "+ 2")}), superseded=superseded)
        assert "other code (m)" in said
        assert not (folder / "work").exists()
        assert (superseded / f"train-{number}" / "work").is_file()
        (folder / "code.json.gz").unlink()


def test_by_key_other_code_is_taken_and_said(tmp_path: Path) -> None:
    begin(tmp_path / "train", Code({"m": SOURCE}), superseded=tmp_path / "superseded")
    (tmp_path / "train" / "work").write_text("half", encoding="utf-8")
    other = Code({"m": SOURCE.replace("+ 1", "+ 2")})
    said = begin(tmp_path / "train", other, superseded=tmp_path / "superseded", by_key=True)
    assert "taken all the same" in said and (tmp_path / "train" / "work").is_file()


def test_work_whose_code_is_not_recorded_is_not_continued(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "work").write_text("half", encoding="utf-8")
    said = begin(tmp_path / "train", Code({"m": SOURCE}), superseded=tmp_path / "superseded")
    assert "not recorded" in said and not (tmp_path / "train" / "work").exists()


def test_a_kept_code_reads_back_and_a_damaged_one_is_none(tmp_path: Path) -> None:
    code = Code({"m": SOURCE, "p/data.txt": "00"})
    write_code(tmp_path, code)
    assert read_code(tmp_path) == code
    (tmp_path / "code.json.gz").write_bytes(b"\x1f\x8b torn")
    assert read_code(tmp_path) is None


def test_a_data_set_is_identified_by_the_content_of_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGROS_HOME", str(tmp_path / "home"))
    folder = tmp_path / "data"
    (folder / "inner").mkdir(parents=True)
    (folder / "inner" / "a.txt").write_text("one", encoding="utf-8")
    first = keys.folder_content(folder)
    (folder / ".hidden").write_text("x", encoding="utf-8")
    assert first is not None and keys.folder_content(folder) == first
    moved = tmp_path / "elsewhere"
    folder.rename(moved)
    assert keys.folder_content(moved) == first
    (moved / "inner" / "a.txt").write_text("two", encoding="utf-8")
    assert keys.folder_content(moved) != first
    assert keys.folder_content(tmp_path / "absent") is None


def test_a_digest_is_computed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGROS_HOME", str(tmp_path / "home"))
    (tmp_path / "data.bin").write_bytes(b"0")
    first = keys.folder_content(tmp_path / "data.bin")
    monkeypatch.setattr(keys, "file_sha256", None)
    assert keys.folder_content(tmp_path / "data.bin") == first


def test_a_version_is_the_one_that_a_class_declares() -> None:
    class Newer(SFT):
        version = 5

    assert (keys.version_of(SFT()), keys.version_of(Newer()), keys.version_of(None)) == (2, 5, 1)
