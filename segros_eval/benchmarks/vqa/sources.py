"""Rows of a benchmark from whatever form its official files have in a folder: parquet, TSV, or the authors' archives.

* The hub's parquet files (lmms-lab, MMMU), read by `datasets`; pictures are columns of encoded bytes.
* VLMEvalKit's TSV: pictures are base64, a short cell names the row whose picture is meant, POPE's rows list the splits
  they belong to, and options stand in the columns A, B, C and so on.
* The authors' own files, loose or in zip archives: MME's category folders, POPE's and GQA's and SEED-Bench's JSON with
  folders of pictures.

Every row comes in the hub's columns. A picture is joined by name and read when it is looked at.
"""

from __future__ import annotations

import csv
import functools
import json
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from segros_eval.benchmarks.base import Picture
from segros_eval.benchmarks.vqa.categories import COGNITION, PERCEPTION, SPLITS
from segros_eval.benchmarks.vqa.pictures import CellPicture, MemberPicture, TsvPicture
from segros_eval.benchmarks.vqa.tables import cell_pictures, parquet_table, read_record
from segros_train.errors import PrerequisiteError

__all__ = ["read_rows"]

Row = tuple[Mapping[str, Any], tuple[Path | Picture, ...]]

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
_SHORT_CELL = 64
"""A TSV cell up to this length is no picture but the index of the row that holds it."""


def read_rows(benchmark: str, folder: Path) -> list[Row]:
    """Return every row of a benchmark with its pictures, in the order of its files.

    Args:
        benchmark: `"mme"`, `"pope"`, `"gqa"`, `"mmmu"` or `"seed"`.
        folder: Folder of the official files.

    Raises:
        PrerequisiteError: If no form is found, or a file cannot be read.
    """
    stamp = tuple(sorted((str(path), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()))
    return _rows(benchmark, folder, stamp)


@functools.lru_cache(maxsize=8)
def _rows(benchmark: str, folder: Path, stamp: tuple[tuple[str, int], ...]) -> list[Row]:
    """Read a folder in the state that `stamp` tells."""
    tables = tuple(path for name, _ in stamp if (path := Path(name)).suffix == ".parquet" and _wanted(benchmark, path))
    sheets = [path for name, _ in stamp if (path := Path(name)).suffix == ".tsv"]
    try:
        if tables:
            return list(_PARQUET.get(benchmark, _parquet_rows)(tables))
        if sheets:
            return [row for sheet in sheets for row in _tsv_rows(benchmark, sheet)]
        own = _OWN.get(benchmark)
        found = list(own(_Files.below(folder))) if own is not None else []
    except (OSError, ValueError, KeyError, TypeError, SyntaxError, zipfile.BadZipFile, csv.Error) as error:
        raise PrerequisiteError(
            f"The files of {benchmark} in {folder} cannot be read: {type(error).__name__}: {error}",
            "Fetch them again.",
        ) from error
    if not found:
        raise PrerequisiteError(
            f"{folder} holds no form of {benchmark} that is known: no parquet file, no TSV, none of the authors' own "
            f"files",
            f"Get them with `segros data fetch {benchmark}`.",
        )
    return found


def _wanted(benchmark: str, path: Path) -> bool:
    """Tell whether a parquet file is of the split that is asked: repositories hold others beside it."""
    name = path.as_posix()
    match benchmark:
        case "pope":
            return "/Full/" not in name
        case "mmmu":
            return "validation" in path.name or not path.name.startswith(("dev", "test"))
        case _:
            return True


def _is_picture_column(field: Any) -> bool:
    import pyarrow

    kind = field.type
    if pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind):
        kind = kind.value_type
    return pyarrow.types.is_struct(kind) and any(part.name == "bytes" for part in kind)


def _parquet_rows(files: tuple[Path, ...]) -> Iterator[Row]:
    """Yield rows whose picture columns are `image` or `image_1` to `image_7`, one picture or a list each."""
    from pyarrow import compute

    table = parquet_table(files)
    columns = [field.name for field in table.schema if _is_picture_column(field)]
    texts = table.select([name for name in table.column_names if name not in columns]).to_pylist()
    # What is there, without reading the bytes: an empty cell is no picture.
    there = {name: table.column(name).is_valid().to_pylist() for name in columns}
    lists = {name: hasattr(table.schema.field(name).type, "value_type") for name in columns}
    counts = {name: compute.list_value_length(table.column(name)).to_pylist() for name in columns if lists[name]}
    for number, row in enumerate(texts):
        pictures: list[Path | Picture] = []
        for name in sorted(columns):
            if not there[name][number]:
                continue
            places = range(counts[name][number]) if lists[name] else (None,)
            pictures += [CellPicture(files, number, name, place) for place in places]
        yield row, tuple(pictures)


def _gqa_parquet_rows(files: tuple[Path, ...]) -> Iterator[Row]:
    """Join GQA's table of questions with its table of pictures, by the picture's id; a picture stays where it is."""
    asked = tuple(path for path in files if "instructions" in path.as_posix())
    shown = tuple(path for path in files if "images" in path.as_posix() and path not in asked)
    if not asked or not shown:
        yield from _parquet_rows(files)
        return
    pictures = {str(row["id"]): pictures for row, pictures in _parquet_rows(shown)}
    for row, _ in _parquet_rows(asked):
        yield row, pictures.get(str(row["imageId"]), ())


_PARQUET: Mapping[str, Callable[[tuple[Path, ...]], Iterator[Row]]] = {"gqa": _gqa_parquet_rows}


def _records(path: Path) -> Iterator[tuple[int, int, list[str]]]:
    """Yield offset, length and cells of each record; a record ends where its quotes are closed."""
    with path.open("rb") as stream:
        offset, waiting = 0, b""
        for line in stream:
            waiting += line
            if waiting.count(b'"') % 2:
                continue
            if waiting.strip():
                yield offset, len(waiting), read_record(waiting)
            offset += len(waiting)
            waiting = b""
        if waiting.strip():
            raise ValueError(f"{path} ends within a quoted cell at byte {offset}: it is cut off")


def _tsv_rows(benchmark: str, path: Path) -> Iterator[Row]:
    records = _records(path)
    _, _, heads = next(records, (0, 0, []))
    if "question" not in heads:
        raise ValueError(f"{path} has no column question; its columns are {', '.join(heads)}")
    column = heads.index("image") if "image" in heads else None
    places: dict[str, tuple[Picture, ...]] = {}
    kept: list[tuple[dict[str, str], str]] = []
    for offset, length, cells in records:
        row = dict(zip(heads, cells, strict=True))
        cell = row.pop("image", "")
        index = row.get("index", str(len(kept)))
        if column is not None and len(cell) > _SHORT_CELL:
            several = len(cell_pictures(cell)) if cell.startswith("[") else None
            parts = range(several) if several is not None else (None,)
            places[index] = tuple(TsvPicture(path, offset, length, column, part) for part in parts)
            cell = index
        kept.append((row, cell or index))
    for row, place in kept:
        for translated in _TSV[benchmark](row):
            yield translated, places.get(place, ())


def _stem(name: str) -> str:
    return PurePosixPath(name.replace("\\", "/")).stem


def _mme_tsv(row: Mapping[str, str]) -> Iterator[Mapping[str, Any]]:
    place = row.get("image_path") or row["index"]
    question_id = place if place.startswith(f"{row['category']}/") else f"{row['category']}/{PurePosixPath(place).name}"
    yield {**row, "question_id": question_id}


def _pope_tsv(row: Mapping[str, str]) -> Iterator[Mapping[str, Any]]:
    source = _stem(row.get("image_path") or row.get("image_source") or row["index"])
    for split in row["category"].split(","):
        yield {**row, "category": split.strip(), "image_source": source, "answer": row["answer"].strip().lower()}


def _gqa_tsv(row: Mapping[str, str]) -> Iterator[Mapping[str, Any]]:
    source = row.get("imageId") or _stem(row.get("image_path") or row["index"])
    yield {**row, "id": row.get("id") or row["index"], "imageId": source}


def _mmmu_tsv(row: Mapping[str, str]) -> Iterator[Mapping[str, Any]]:
    if not row["id"].startswith("validation_"):
        return
    options = [row[letter] for letter in "ABCDEFGHI" if row.get(letter)]
    kind = row.get("question_type") or ("multiple-choice" if options else "open")
    yield {**row, "options": repr(options), "question_type": kind}


def _seed_tsv(row: Mapping[str, str]) -> Iterator[Mapping[str, Any]]:
    choices = {f"choice_{letter.lower()}": row[letter] for letter in "ABCD"}
    ids = {"question_id": row.get("question_id") or row["index"], "data_id": row.get("data_id") or row["index"]}
    kind = row.get("question_type_id") or _DIMENSION_IDS.get(row.get("category", "").strip().lower(), "")
    yield {**row, **choices, **ids, "question_type_id": kind, "data_type": "image"}


_DIMENSION_IDS = {
    "scene understanding": "1",
    "instance identity": "2",
    "instance attributes": "3",
    "instance attribute": "3",
    "instance location": "4",
    "instances counting": "5",
    "spatial relation": "6",
    "instance interaction": "7",
    "visual reasoning": "8",
    "text understanding": "9",
    "text recognition": "9",
}
_TSV: Mapping[str, Callable[[Mapping[str, str]], Iterator[Mapping[str, Any]]]] = {
    "mme": _mme_tsv,
    "pope": _pope_tsv,
    "gqa": _gqa_tsv,
    "mmmu": _mmmu_tsv,
    "seed": _seed_tsv,
}


@dataclass(frozen=True)
class _Files:
    """Files below a folder, those in zip archives included, by their path from the folder or in the archive."""

    texts: Mapping[str, Callable[[], str]]
    pictures: Mapping[str, Path | Picture]

    @classmethod
    def below(cls, folder: Path) -> _Files:
        texts: dict[str, Callable[[], str]] = {}
        pictures: dict[str, Path | Picture] = {}
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            if path.suffix == ".zip":
                with zipfile.ZipFile(path) as archive:
                    names = [name for name in archive.namelist() if not name.endswith("/")]
                for name in names:
                    if name.lower().endswith(IMAGE_SUFFIXES):
                        pictures[name] = MemberPicture(path, name)
                    else:
                        texts[name] = functools.partial(_member_text, path, name)
            elif path.suffix.lower() in IMAGE_SUFFIXES:
                pictures[path.relative_to(folder).as_posix()] = path
            else:
                texts[path.relative_to(folder).as_posix()] = functools.partial(path.read_text, encoding="utf-8")
        return cls(texts, pictures)

    @functools.cached_property
    def by_name(self) -> Mapping[str, Path | Picture]:
        """Pictures by file name without suffix."""
        return {_stem(name): picture for name, picture in self.pictures.items()}

    @functools.cached_property
    def by_category(self) -> Mapping[str, Mapping[str, Path | Picture]]:
        """MME's pictures by file name without suffix, by the category's folder they lie in."""
        found: dict[str, dict[str, Path | Picture]] = {}
        for name, picture in self.pictures.items():
            category = _category_of(PurePosixPath(name).parent)
            found.setdefault(category, {})[_stem(name)] = picture
        return found

    def text(self, ending: str) -> str | None:
        """Return the text of the file whose path ends so."""
        return next((read() for name, read in self.texts.items() if name.endswith(ending)), None)


def _member_text(archive: Path, name: str) -> str:
    with zipfile.ZipFile(archive) as opened:
        return opened.read(name).decode("utf-8")


def _category_of(path: PurePosixPath) -> str:
    """Return the category that a path's last part so named tells; empty where none does."""
    return next((part for part in reversed(path.parts) if part in _MME_CATEGORIES), "")


def _mme_own(files: _Files) -> Iterator[Row]:
    """Read MME's release: below each category a text file per picture, or one per category that names pictures."""
    for name, read in files.texts.items():
        path = PurePosixPath(name)
        category = _category_of(path.with_suffix(""))
        # The release's scoring tool brings the same questions again, beside another model's answers.
        if path.suffix != ".txt" or not category or "eval_tool" in path.parts:
            continue
        for line in read().splitlines():
            cells = line.split("\t")
            if not line.strip():
                continue
            source, question, answer = cells[:3] if len(cells) >= 3 else (path.stem, *cells)
            picture = files.by_category.get(category, {}).get(_stem(source))
            file_name = PurePosixPath(picture.name).name if picture is not None else source
            record = {"question_id": f"{category}/{file_name}", "question": question, "answer": answer.strip()}
            yield {**record, "category": category}, (picture,) if picture is not None else ()


def _pope_own(files: _Files) -> Iterator[Row]:
    for split in SPLITS:
        text = files.text(f"coco_pope_{split}.json")
        for line in (text or "").splitlines():
            row = json.loads(line)
            source = _stem(row["image"])
            picture = files.by_name.get(source)
            record = {"question_id": str(row.get("question_id", "")), "question": row["text"], "answer": row["label"]}
            yield {**record, "image_source": source, "category": split}, (picture,) if picture is not None else ()


def _gqa_own(files: _Files) -> Iterator[Row]:
    for item_id, row in json.loads(files.text("testdev_balanced_questions.json") or "{}").items():
        picture = files.by_name.get(str(row["imageId"]))
        yield {**row, "id": item_id}, (picture,) if picture is not None else ()


def _seed_own(files: _Files) -> Iterator[Row]:
    for row in json.loads(files.text("SEED-Bench.json") or '{"questions": []}')["questions"]:
        picture = files.by_name.get(_stem(str(row["data_id"])))
        yield row, (picture,) if picture is not None else ()


_MME_CATEGORIES = frozenset(PERCEPTION + COGNITION)
_OWN: Mapping[str, Callable[[_Files], Iterator[Row]]] = {
    "mme": _mme_own,
    "pope": _pope_own,
    "gqa": _gqa_own,
    "seed": _seed_own,
}
