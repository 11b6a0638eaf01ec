"""What the benchmarks of questions share: prompts, protocols, and the way from an answer to a score.

Three protocols are named. `standard` is the default: lmms-eval's prompts with each benchmark's own rule of scoring,
and no guess where an answer cannot be read. `lmms-eval` and `vlmevalkit` repeat what those harnesses do, their known
errors included, for whoever compares with numbers made by them.

An answer that was given and cannot be read is scored by the protocol and counted as unparsed. One that is missing, or
cannot be asked for, is unscored.
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from segros_eval.benchmarks.base import Metric, Sample, Score, Tools, World
from segros_eval.benchmarks.kinds import Question, QuestionBenchmark, check_counts

__all__ = [
    "LETTER",
    "WORD",
    "Decoding",
    "PublishedQuestions",
    "Rules",
    "Verdict",
    "accuracies",
    "answer_of",
    "unparsed_share",
    "vlmevalkit_choice_prompt",
]

Rules = Literal["standard", "lmms-eval", "vlmevalkit"]
Decoding = Literal["greedy", "logprobs"]
"""`logprobs` picks the choice whose first token is the likeliest first token of the answer; nothing is decoded."""

WORD = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."

_VERSIONS: Mapping[str, str] = {"standard": "1", "lmms-eval": "75571cf", "vlmevalkit": "e8e78f0"}
_NO_PART_OF_THE_PROTOCOL = ("rules", "shapes_")


@dataclass(frozen=True)
class Verdict:
    """What a protocol makes of an answer.

    Attributes:
        parsed: What it read, JSON-ready; None where it read nothing.
        value: What that is worth, in [0, 1].
        more: What further metrics need besides the answer and the right one, JSON-ready.
    """

    parsed: Any
    value: float
    more: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class PublishedQuestions(QuestionBenchmark):
    """A benchmark of questions that is published as a table, and whose schema the embedded world follows.

    Attributes:
        name: Name of the benchmark.
        rules: Whose prompts and whose reading of an answer.
        num_rows: Questions of the whole set; None takes any number.
        shapes_pictures: Size of the embedded world's set.
    """

    name: ClassVar[str]
    rules: Rules
    num_rows: int | None
    shapes_pictures: int

    def __post_init__(self) -> None:
        check_counts(self)

    @property
    def protocol(self) -> str:
        """Name, version and every option that departs from the default."""
        changed = [
            f"{field.name}={getattr(self, field.name)}"
            for field in dataclasses.fields(self)  # type: ignore[arg-type]
            if not field.name.startswith(_NO_PART_OF_THE_PROTOCOL) and getattr(self, field.name) != field.default
        ]
        return " ".join([self.name, f"{self.rules}@{_VERSIONS[self.rules]}", *changed])

    @property
    def shapes_size(self) -> int:
        """Size of the embedded world's set, in the set's own unit."""
        return self.shapes_pictures

    def questions(self, world: World, data: Path | None) -> Iterator[Question]:
        """Yield each question's id, its record and its pictures."""
        from segros_eval.benchmarks.vqa.data import question_set

        yield from question_set(self.name, world, data, num_rows=self.num_rows, shapes_size=self.shapes_size)

    @abstractmethod
    def read(self, sample: Sample, answer: str) -> Verdict:
        """Return what the protocol makes of an answer."""

    def score(self, samples: Sequence[Sample], responses: Sequence[Any], tools: Tools) -> list[Score]:
        """Score answers in order.

        Args:
            samples: What was asked; the record's `answer` is the right one, its `group` the category.
            responses: Per sample a text, the log-probabilities of its choices, or None.
            tools: Not used: answers are read by rule.
        """
        return [_judged(sample, response, self.read) for sample, response in zip(samples, responses, strict=True)]


def _judged(sample: Sample, response: Any, read: Callable[[Sample, str], Verdict]) -> Score:
    group = sample.metadata["group"]
    if response is None:
        return Score(sample.item_id, sample.cluster_id, None, None, "unscored", None, "no answer was given", group)
    answer = response if isinstance(response, str) else sample.choices[_likeliest(response)]
    verdict = read(sample, answer)
    gold = sample.metadata["answer"]
    raw: dict[str, Any] = {"answer": answer, "gold": gold, **verdict.more}
    if not isinstance(response, str):
        raw["logprobs"] = dict(zip(sample.choices, response, strict=True))
    reason = "" if verdict.value == 1 else f"right is {_listed(gold)}"
    status: Literal["scored", "unparsed"] = "scored"
    if verdict.parsed is None:
        status, reason = "unparsed", f"cannot be read; {reason}" if reason else "cannot be read"
    return Score(sample.item_id, sample.cluster_id, raw, verdict.parsed, status, verdict.value, reason, group)


def answer_of(score: Score) -> tuple[str, Any] | None:
    """Return the answer that was given and the right one; None of an unscored score."""
    return None if score.value is None else (score.raw["answer"], score.raw["gold"])


def unparsed_share() -> Metric:
    """Return the percentage of unparsed answers among those that were given."""
    from segros_eval.statistics.tally import item_mean, item_tally

    return item_mean(
        "unparsed", item_tally(lambda one: None if one.value is None else 100.0 * (one.status == "unparsed"))
    )


def accuracies(groups: Mapping[str, Sequence[str]], *, clusters: str = "image") -> Iterator[Metric]:
    """Yield the accuracy over all answers, then those of some groups of them, in percent.

    Args:
        groups: Groups of scores by the metric's name.
        clusters: What answers share.
    """
    from segros_eval.statistics.tally import item_mean, item_tally, percent

    tally = item_tally(percent)
    for name, members in {"accuracy": (), **groups}.items():
        yield item_mean(name, tally, *members, clusters=clusters, interval="standard error")


def vlmevalkit_choice_prompt(question: str, options: Mapping[str, str], hint: str = "") -> str:
    """Return a question with options as VLMEvalKit writes it.

    Args:
        question: The question.
        options: Texts by letter; none for a question without options.
        hint: What the data adds to the question.

    Source: open-compass/VLMEvalKit@e8e78f0, vlmeval/dataset/image_mcq.py.
    """
    listed = "".join(f"{letter}. {text}\n" for letter, text in options.items())
    parts = [f"Hint: {hint}\n" if hint else "", f"Question: {question}\n"]
    if listed:
        parts += [f"Options:\n{listed}", "Please select the correct answer from the options above. \n"]
    return "".join(parts)


def _likeliest(logprobs: Sequence[float]) -> int:
    return max(range(len(logprobs)), key=logprobs.__getitem__)


def _listed(gold: Any) -> str:
    return " or ".join(map(str, gold)) if isinstance(gold, (list, tuple)) else str(gold)
