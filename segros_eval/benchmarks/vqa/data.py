"""The questions of a benchmark, from the embedded world or from official files, checked before anything is asked.

Official files lie in one folder in any form they are published in: the hub's parquet files, VLMEvalKit's TSV, or the
authors' own archives (`question_sources`). Whatever the form, the items and their ids are the same.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segros_eval.benchmarks.base import Picture, World
from segros_eval.benchmarks.vqa.categories import COGNITION, DOMAINS, PERCEPTION, SPLITS, options_of, subject_of
from segros_train.errors import PrerequisiteError
from segros_train.files import content_key

__all__ = ["Question", "question_set"]

Question = tuple[str, Mapping[str, Any], tuple[Path | Picture, ...]]
"""Item id, the benchmark's own record, and the pictures it is about."""

_SHOWN = 5


def question_set(
    benchmark: str, world: World, data: Path | None, *, num_rows: int | None, shapes_size: int
) -> list[Question]:
    """Return every question of a benchmark, in its order.

    Args:
        benchmark: `"mme"`, `"pope"`, `"gqa"`, `"mmmu"` or `"seed"`.
        world: `"photo"` reads the official files below `data`; `"shapes"` builds the embedded world's set.
        data: Folder of the official files.
        num_rows: Questions there must be; None for any number.
        shapes_size: Size of the embedded world's set, in the set's own unit.

    Raises:
        PrerequisiteError: If files are missing, or rows are damaged, repeated, unpaired or of a wrong number.
    """
    if world == "shapes":
        return list(_shapes_set(benchmark, shapes_size))
    from segros_eval.benchmarks.vqa.sources import read_rows

    schema = SCHEMAS[benchmark]
    if data is None or not data.is_dir():
        place = "no data folder was given" if data is None else f"{data} does not exist"
        raise PrerequisiteError(
            f"{schema.title}'s questions are missing: {place}",
            f"Get them with `segros data fetch {benchmark}`, or put "
            "the hub's parquet files, VLMEvalKit's TSV or the official archives there.",
        )
    questions = [
        question
        for row, pictures in read_rows(benchmark, data)
        if (question := _question(schema, row, pictures)) is not None
    ]
    _check(schema, questions, data, num_rows)
    return questions


@functools.cache
def _shapes_set(benchmark: str, size: int) -> tuple[Question, ...]:
    from segros_eval.benchmarks.vqa.pictures import ScenePicture
    from segros_train.data.shapes.questions import SETS

    return tuple(
        (asked.item_id, asked.record, tuple(ScenePicture(*scene) for scene in asked.scenes))
        for asked in SETS[benchmark](size)
    )


@dataclass(frozen=True)
class Schema:
    """What a row of a benchmark must hold.

    Attributes:
        title: Name of the benchmark.
        required: Fields that may not be empty.
        answers: Right answers there can be, in lower case; none for any.
        item_id: The id of a row.
        asked: Whether a row belongs to the benchmark's picture part.
        fault: What else is wrong with a row; empty where nothing is.
        paired_by: Field that two rows share; empty for none.
    """

    title: str
    required: tuple[str, ...]
    item_id: Callable[[Mapping[str, Any]], str]
    answers: tuple[str, ...] = ()
    asked: Callable[[Mapping[str, Any]], bool] = lambda row: True
    fault: Callable[[Mapping[str, Any]], str] = lambda row: ""
    paired_by: str = ""


def _question(schema: Schema, row: Mapping[str, Any], pictures: tuple[Path | Picture, ...]) -> Question | None:
    """Return a row as a question, its id empty where it is damaged; None where it is not asked."""
    missing = [name for name in schema.required if row.get(name) in (None, "")]
    fault = f"{', '.join(missing)} missing" if missing else ""
    if not fault:
        if not schema.asked(row):
            return None
        answer = str(row["answer"]).strip().lower()
        if schema.answers and answer not in schema.answers:
            fault = f"the right answer is {row['answer']!r}"
        fault = fault or schema.fault(row) or ("" if pictures else "no picture")
    if fault:
        return "", {**row, "fault": fault}, pictures
    return schema.item_id(row), row, pictures


def _check(schema: Schema, questions: Sequence[Question], folder: Path, num_rows: int | None) -> None:
    """Raise where rows are damaged, repeated, unpaired or of a wrong number; every kind of fault is told at once."""
    problems = [*_damage(questions), *_repeats(questions), *_unpaired(schema, questions)]
    if num_rows is not None and len(questions) != num_rows:
        problems.append(f"{len(questions)} questions, expected {num_rows}")
    if problems:
        raise PrerequisiteError(
            f"{folder} is not {schema.title} as published: {'; '.join(problems)}",
            "Fetch it again, or take another "
            "number of questions with --set num_rows=..., which becomes part of the protocol's name.",
        )


def _damage(questions: Sequence[Question]) -> Iterator[str]:
    damaged = [f"row {number} ({row['fault']})" for number, (item_id, row, _) in enumerate(questions) if not item_id]
    if damaged:
        yield f"{len(damaged)} damaged rows: {_some(damaged)}"


def _repeats(questions: Sequence[Question]) -> Iterator[str]:
    repeated = [item for item, times in Counter(item_id for item_id, _, _ in questions if item_id).items() if times > 1]
    if repeated:
        yield f"{len(repeated)} ids that occur more than once: {_some(repeated)}"


def _unpaired(schema: Schema, questions: Sequence[Question]) -> Iterator[str]:
    if not schema.paired_by:
        return
    groups = Counter(row[schema.paired_by] for item_id, row, _ in questions if item_id)
    unpaired = [f"{name} ({times})" for name, times in groups.items() if times != 2]
    if unpaired:
        yield f"{len(unpaired)} pictures without exactly two questions: {_some(unpaired)}"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _digest(text: str) -> str:
    return content_key(" ".join(text.split()))[:10]


def _seed_fault(row: Mapping[str, Any]) -> str:
    kind = str(row["question_type_id"])
    return "" if kind.isdigit() and 1 <= int(kind) <= 12 else f"its question_type_id is {kind!r}"


def _mmmu_fault(row: Mapping[str, Any]) -> str:
    try:
        options, subject = options_of(row), subject_of(str(row["id"]))
    except (ValueError, SyntaxError):
        return "its id or its options cannot be read"
    if subject not in {name for names in DOMAINS.values() for name in names}:
        return f"its subject is {subject!r}"
    if row["question_type"] not in ("open", "multiple-choice"):
        return f"its question_type is {row['question_type']!r}"
    if row["question_type"] == "multiple-choice" and row["answer"] not in options:
        return f"the right answer is {row['answer']!r} of options {''.join(options)}"
    return ""


def _mme_fault(row: Mapping[str, Any]) -> str:
    return "" if row["category"] in PERCEPTION + COGNITION else f"its category is {row['category']!r}"


def _pope_fault(row: Mapping[str, Any]) -> str:
    return "" if row["category"] in SPLITS else f"its category is {row['category']!r}"


SCHEMAS: Mapping[str, Schema] = {
    "mme": Schema(
        title="MME",
        required=("question_id", "question", "answer", "category"),
        answers=("yes", "no"),
        item_id=lambda row: f"{row['question_id']}/{_digest(row['question'])}",
        fault=_mme_fault,
        paired_by="question_id",
    ),
    "pope": Schema(
        title="POPE",
        required=("question", "answer", "image_source", "category"),
        answers=("yes", "no"),
        item_id=lambda row: f"{row['category']}/{row['image_source']}/{_digest(row['question'])}",
        fault=_pope_fault,
    ),
    "gqa": Schema(title="GQA", required=("id", "imageId", "question", "answer"), item_id=lambda row: str(row["id"])),
    "mmmu": Schema(
        title="MMMU",
        required=("id", "question", "answer", "question_type"),
        item_id=lambda row: str(row["id"]),
        fault=_mmmu_fault,
    ),
    "seed": Schema(
        title="SEED-Bench",
        required=("question_id", "question", "choice_a", "choice_b", "choice_c", "choice_d", "answer", "data_id"),
        answers=("a", "b", "c", "d"),
        item_id=lambda row: str(row["question_id"]),
        asked=lambda row: str(row.get("data_type", "image")) == "image" and int(row["question_type_id"]) <= 9,
        fault=_seed_fault,
    ),
}
