"""Whether the files of a benchmark of questions are whole: its rows, their number, and every picture."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from segros_eval.benchmarks.base import EvalTask, Picture, Sample
from segros_eval.benchmarks.fetch import BenchmarkData, hub_commit
from segros_eval.benchmarks.images import UnreadableImageError
from segros_eval.benchmarks.vqa.pictures import open_picture
from segros_train.errors import PrerequisiteError

__all__ = ["QuestionFiles", "check_questions"]


@dataclass(frozen=True)
class QuestionFiles:
    """What was found.

    Attributes:
        num_questions: Questions that can be asked.
        faults: What is wrong: rows, their number, a digest; each damaged picture with the questions it takes along.
        commit: Commit of the hub's files; None for files from elsewhere.
    """

    num_questions: int
    faults: tuple[str, ...] = ()
    commit: str | None = None


def check_questions(
    task: EvalTask, data: BenchmarkData, folder: Path, *, advance: Callable[[int], None] = lambda count: None
) -> QuestionFiles:
    """Read every row and every picture of a benchmark.

    Args:
        task: The evaluation that asks them.
        data: The files as declared.
        folder: Where they lie.
        advance: Told how many questions' pictures have been read, as they are.
    """
    faults = [*_sheet_faults(data, folder)]
    try:
        samples = list(task.evaluator.samples("photo", folder, (0,)))
    except PrerequisiteError as error:
        return QuestionFiles(0, (*faults, str(error)), hub_commit(folder))
    return QuestionFiles(len(samples), (*faults, *_picture_faults(samples, advance)), hub_commit(folder))


def _sheet_faults(data: BenchmarkData, folder: Path) -> list[str]:
    if data.sheet is None or not (path := folder / data.sheet.name).is_file():
        return []
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "md5").hexdigest()
    return [] if digest == data.sheet.md5 else [f"{path.name}: md5 is {digest}, VLMEvalKit states {data.sheet.md5}"]


def _picture_faults(samples: Sequence[Sample], advance: Callable[[int], None]) -> list[str]:
    damaged: dict[Path | Picture, str] = {}
    whole: set[Path | Picture] = set()
    taken: dict[str, int] = {}
    for sample in samples:
        for picture in sample.images:
            if picture not in whole and picture not in damaged:
                try:
                    open_picture(picture)
                    whole.add(picture)
                except UnreadableImageError as error:
                    damaged[picture] = str(error)
            if picture in damaged:
                taken[damaged[picture]] = taken.get(damaged[picture], 0) + 1
        advance(1)
    return [f"{reason} ({number} question{'s' if number > 1 else ''})" for reason, number in taken.items()]
