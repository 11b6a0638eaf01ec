"""Official files of the benchmarks of questions, small: the embedded world's sets in every published form."""

from __future__ import annotations

import base64
import csv
import io
import json
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from segros_eval.benchmarks.vqa.categories import options_of
from segros_eval.benchmarks.vqa.pictures import ScenePicture
from segros_train.data.shapes.questions import SETS, ShapesQuestion

SIZES = {"mme": 2, "pope": 2, "gqa": 3, "mmmu": 5, "seed": 2}
FORMS: dict[str, tuple[str, ...]] = {
    "mme": ("hub", "tsv", "own"),
    "pope": ("hub", "tsv", "own"),
    "gqa": ("hub", "tsv", "own"),
    "mmmu": ("hub", "tsv"),
    "seed": ("hub", "tsv", "own"),
}


def asked(benchmark: str) -> list[ShapesQuestion]:
    """Return a small set."""
    return list(SETS[benchmark](SIZES[benchmark]))


def png(scene: tuple[int, int]) -> bytes:
    stream = io.BytesIO()
    ScenePicture(*scene).open().save(stream, format="PNG")
    return stream.getvalue()


def write_files(folder: Path, benchmark: str, form: str) -> None:
    """Write a small set's files into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    questions = asked(benchmark)
    if form == "hub":
        _write_hub(folder, benchmark, questions)
    elif form == "tsv":
        write_tsv(folder / f"{benchmark}.tsv", _tsv_rows(benchmark, questions))
    else:
        with zipfile.ZipFile(folder / f"{benchmark}.zip", "w") as archive:
            _OWN[benchmark](archive, questions)


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows with pictures as the hub's files hold them; a picture is its PNG bytes, or a list of them."""
    import datasets

    def cell(value: Any) -> Any:
        if isinstance(value, bytes):
            return {"bytes": value, "path": None}
        return [cell(item) for item in value] if isinstance(value, list) else value

    features: dict[str, Any] = {}
    for name in rows[0]:
        value = next((row[name] for row in rows if row[name] is not None), "")
        if isinstance(value, bytes):
            features[name] = datasets.Image()
        elif isinstance(value, list):
            features[name] = datasets.List(datasets.Image())
        else:
            features[name] = datasets.Value("int64" if isinstance(value, int) else "string")
    columns = {name: [cell(row[name]) for row in rows] for name in rows[0]}
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict(columns, features=datasets.Features(features)).to_parquet(str(path))


def _write_hub(folder: Path, benchmark: str, questions: list[ShapesQuestion]) -> None:
    if benchmark == "gqa":
        pictures = {q.record["imageId"]: q.scenes[0] for q in questions}
        write_parquet(folder / "testdev_balanced_instructions" / "t.parquet", [dict(q.record) for q in questions])
        shown = [{"id": name, "image": png(scene)} for name, scene in pictures.items()]
        write_parquet(folder / "testdev_balanced_images" / "t.parquet", shown)
        return
    rows: list[dict[str, Any]] = []
    for question in questions:
        row = dict(question.record)
        if benchmark == "mmmu":
            row |= {f"image_{k}": None for k in range(1, 8)}
            row |= {f"image_{k}": png(scene) for k, scene in enumerate(question.scenes, start=1)}
        else:
            picture = png(question.scenes[0])
            row["image"] = [picture] if benchmark == "seed" else picture
        rows.append(row)
    split = "validation" if benchmark == "mmmu" else "test"
    write_parquet(folder / "data" / f"{split}-00000-of-00001.parquet", rows)


def write_tsv(path: Path, rows: list[Mapping[str, Any]]) -> None:
    """Write rows as VLMEvalKit does."""
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), delimiter="\t", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _tsv_rows(benchmark: str, questions: list[ShapesQuestion]) -> list[Mapping[str, Any]]:
    """Return rows in VLMEvalKit's columns; a picture that an earlier row holds is named by that row's index."""
    seen: dict[Any, int] = {}
    rows: dict[Any, dict[str, Any]] = {}
    for question in questions:
        record, index = question.record, len(rows)
        same = (question.scenes, record["question"], record["answer"])
        if benchmark == "pope" and same in rows:
            rows[same]["category"] += f",{record['category']}"
            continue
        encoded = [base64.b64encode(png(scene)).decode() for scene in question.scenes]
        cell = repr(encoded) if len(encoded) > 1 else encoded[0]
        if question.scenes in seen:
            cell = str(seen[question.scenes])
        else:
            seen[question.scenes] = index
        key = same if benchmark == "pope" else index
        rows[key] = {"index": index, "question": record["question"], "answer": record["answer"], "image": cell}
        rows[key] |= _TSV_COLUMNS[benchmark](record)
    return list(rows.values())


def _mmmu_columns(record: Mapping[str, Any]) -> dict[str, Any]:
    options = options_of(record)
    letters = {letter: options.get(letter, "") for letter in "ABCD"}
    return {"id": record["id"], **letters, "question_type": record["question_type"]}


def _seed_columns(record: Mapping[str, Any]) -> dict[str, Any]:
    letters = {letter: record[f"choice_{letter.lower()}"] for letter in "ABCD"}
    ids = {name: record[name] for name in ("question_id", "data_id", "question_type_id")}
    return {**letters, **ids}


_TSV_COLUMNS: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    "mme": lambda record: {"category": record["category"], "image_path": record["question_id"]},
    "pope": lambda record: {
        "category": record["category"],
        "image_path": f"{record['image_source']}.jpg",
        "answer": record["answer"].capitalize(),
    },
    "gqa": lambda record: {"id": record["id"], "image_path": f"{record['imageId']}.jpg"},
    "mmmu": _mmmu_columns,
    "seed": _seed_columns,
}


def _mme_own(archive: zipfile.ZipFile, questions: list[ShapesQuestion]) -> None:
    lines: dict[str, list[str]] = {}
    for question in questions:
        category, name = question.record["question_id"].split("/")
        root = f"MME_Benchmark_release_version/{category}"
        if f"{root}/{name}" not in archive.namelist():
            archive.writestr(f"{root}/{name}", png(question.scenes[0]))
        place = f"{root}/{name.removesuffix('.png')}.txt"
        lines.setdefault(place, []).append(f"{question.record['question']}\t{question.record['answer']}")
    for place, rows in lines.items():
        archive.writestr(place, "\n".join(rows) + "\n")
    archive.writestr("MME_Benchmark_release_version/eval_tool/Your_Results/count.txt", "a.png\tIs it?\tYes\tNo\n")


def _pope_own(archive: zipfile.ZipFile, questions: list[ShapesQuestion]) -> None:
    lines: dict[str, list[str]] = {}
    for question in questions:
        record, name = question.record, f"{question.record['image_source']}.jpg"
        row = {"question_id": 1, "image": name, "text": record["question"], "label": record["answer"]}
        lines.setdefault(record["category"], []).append(json.dumps(row))
        if f"val2014/{name}" not in archive.namelist():
            archive.writestr(f"val2014/{name}", png(question.scenes[0]))
    for split, rows in lines.items():
        archive.writestr(f"output/coco/coco_pope_{split}.json", "\n".join(rows))


def _gqa_own(archive: zipfile.ZipFile, questions: list[ShapesQuestion]) -> None:
    rows = {q.record["id"]: {name: q.record[name] for name in ("imageId", "question", "answer")} for q in questions}
    archive.writestr("testdev_balanced_questions.json", json.dumps(rows))
    for name, scene in {q.record["imageId"]: q.scenes[0] for q in questions}.items():
        archive.writestr(f"images/{name}.jpg", png(scene))


def _seed_own(archive: zipfile.ZipFile, questions: list[ShapesQuestion]) -> None:
    video = {"question_id": "v1", "question": "What happens?", "answer": "A", "data_type": "video", "data_id": "7.mp4"}
    video |= {"question_type_id": 10, "choice_a": "a", "choice_b": "b", "choice_c": "c", "choice_d": "d"}
    archive.writestr("SEED-Bench.json", json.dumps({"questions": [*(dict(q.record) for q in questions), video]}))
    for name, scene in {q.record["data_id"]: q.scenes[0] for q in questions}.items():
        archive.writestr(f"SEED-Bench-image/{name}.png", png(scene))


_OWN = {"mme": _mme_own, "pope": _pope_own, "gqa": _gqa_own, "seed": _seed_own}


def same_picture(a: Image.Image, b: Image.Image) -> bool:
    return a.size == b.size and a.tobytes() == b.tobytes()
