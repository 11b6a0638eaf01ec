"""The rules of DPG-Bench: from answers about a picture to its score and the scores of categories.

A prompt has a graph of yes/no questions. A picture's score is the share of questions answered "yes", where a question
counts as no when one of those it depends on does; a file's score is the mean over its pictures, and the headline the
mean over files. Categories collect answers as given, before any is set to no.

The official script departs from that in two ways, kept apart here: it throws away the first data row of its table, so
that one prompt lacks a question or fails altogether, and it takes categories from the last picture of each file alone.

Source: TencentQQGYLab/ELLA@3c228f1, dpg_bench/compute_dpg_bench.py; RecA@b250aa1 takes categories from all pictures.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from segros_train.errors import PrerequisiteError

__all__ = [
    "CATEGORIES",
    "KINDS",
    "Answered",
    "Level",
    "Question",
    "Summary",
    "read_graphs",
    "score_picture",
    "summarise",
]

CATEGORIES = (
    "entity - whole",
    "entity - part",
    "entity - state",
    "attribute - color",
    "attribute - other",
    "attribute - shape",
    "attribute - size",
    "attribute - texture",
    "relation - spatial",
    "relation - non-spatial",
    "other - count",
    "other - text",
    "global -",
)
"""The second level of categories, in the official spelling."""
KINDS = ("global", "entity", "attribute", "relation", "other")
"""The first level: what stands before the dash."""

Level = Literal["kind", "category", "zeroed kind"]
"""First-level categories and second-level ones, answers as given; first-level ones after dependencies."""

YES = "yes"
_COLUMNS = {"item_id", "proposition_id", "dependency", "tuple", "question_natural_language"}


@dataclass(frozen=True)
class Question:
    """A question of a prompt's graph.

    Attributes:
        id: Its number within the prompt.
        category: Second-level category.
        text: The question.
        parents: Numbers of the questions it depends on, in written order.
    """

    id: int
    category: str
    text: str
    parents: tuple[int, ...] = ()

    @property
    def kind(self) -> str:
        """First-level category."""
        return self.category.partition("-")[0].strip()


@dataclass(frozen=True)
class Answered:
    """The answers about one picture.

    Attributes:
        file: What the mean over pictures is taken within: the prompt, or the picture itself.
        questions: The graph, in the table's order.
        yes: Whether each question was answered "yes", by its number.
        heads_table: Whether the graph's first question is the table's first data row.
    """

    file: str
    questions: tuple[Question, ...]
    yes: Mapping[int, bool]
    heads_table: bool = False


@dataclass(frozen=True)
class Summary:
    """What the answers about many pictures come to; shares in [0, 1].

    Attributes:
        score: Mean over files; None without any.
        files: Score of each file.
        pictures: Scores of each file's pictures.
        counts: How many questions were answered yes, and how many asked, by level and category.
        failed: Files that the rules cannot score: a question depends on one that is not there.
    """

    score: float | None
    files: Mapping[str, float]
    pictures: Mapping[str, tuple[float, ...]]
    counts: Mapping[tuple[Level, str], tuple[int, int]]
    failed: tuple[str, ...] = ()

    def shares(self, level: Level) -> dict[str, float]:
        """Return the share of yes by category of a level."""
        return {name: yes / asked for (one, name), (yes, asked) in self.counts.items() if one == level}


def read_graphs(path: Path) -> dict[str, tuple[Question, ...]]:
    """Read the official table of questions, by item id and in its order.

    Rows of an item stand together; an item that comes again takes the place of the earlier one, as upstream.

    Raises:
        PrerequisiteError: If the table lacks a column or a number cannot be read.
    """
    graphs: dict[str, tuple[Question, ...]] = {}
    previous = None
    with path.open(encoding="utf-8-sig", newline="") as stream:
        rows = csv.DictReader(stream)
        if lacking := sorted(_COLUMNS - set(rows.fieldnames or ())):
            raise PrerequisiteError(f"{path} is no table of DPG-Bench: it lacks the columns {', '.join(lacking)}.")
        for number, row in enumerate(rows, start=2):
            item = row["item_id"]
            try:
                question = _question(row)
            except ValueError as error:
                raise PrerequisiteError(f"{path}, line {number}, cannot be read: {error}.") from error
            graphs[item] = (*graphs[item], question) if item == previous else (question,)
            previous = item
    return graphs


def score_picture(questions: Sequence[Question], yes: Mapping[int, bool]) -> dict[int, bool] | None:
    """Set to no what depends on a no, in one pass in the table's order, and return the answers by number.

    A question that stands before the one it depends on sees that one's answer as given. Parents are read in written
    order until one is no.

    Args:
        questions: The graph.
        yes: Answers as given.

    Returns:
        None where a question depends on one that is not there.
    """
    counted = {question.id: yes[question.id] for question in questions}
    for question in questions:
        for parent in question.parents:
            if parent not in counted:
                return None
            if not counted[parent]:
                counted[question.id] = False
                break
    return counted


def summarise(pictures: Iterable[Answered], *, drop_first_row: bool, last_picture_only: bool) -> Summary:
    """Sum up the answers about many pictures.

    Args:
        pictures: Those of one file in their order.
        drop_first_row: Leave out the table's first data row, as the official script does.
        last_picture_only: Take categories from the last picture of each file alone, as the official script does.
    """
    files: dict[str, list[Answered]] = {}
    for picture in pictures:
        files.setdefault(picture.file, []).append(picture)
    scores: dict[str, tuple[float, ...]] = {}
    counts: dict[tuple[Level, str], tuple[int, int]] = {}
    failed = []
    for file, members in files.items():
        asked = [member.questions[drop_first_row and member.heads_table :] for member in members]
        counted = [score_picture(few, member.yes) for few, member in zip(asked, members, strict=True)]
        good = [answers for answers in counted if answers]
        if len(good) < len(members):
            failed.append(file)
            continue
        scores[file] = tuple(sum(answers.values()) / len(answers) for answers in good)
        for few, member, answers in list(zip(asked, members, good, strict=True))[-1 if last_picture_only else 0 :]:
            for question in few:
                given, after = member.yes[question.id], answers[question.id]
                judged: tuple[tuple[Level, str, bool], ...] = (
                    ("kind", question.kind, given),
                    ("category", question.category, given),
                    ("zeroed kind", question.kind, after),
                )
                for level, name, right in judged:
                    place = level, name
                    yes, all_asked = counts.get(place, (0, 0))
                    counts[place] = yes + right, all_asked + 1
    means = {file: sum(values) / len(values) for file, values in scores.items()}
    score = sum(means.values()) / len(means) if means else None
    return Summary(score, means, scores, counts, tuple(failed))


def _question(row: Mapping[str, str]) -> Question:
    parents = tuple(int(number) for number in row["dependency"].split(","))
    return Question(
        id=int(row["proposition_id"]),
        category=row["tuple"].partition("(")[0].strip(),
        text=row["question_natural_language"],
        parents=tuple(parent for parent in parents if parent),
    )
