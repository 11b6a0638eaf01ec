"""Evaluators: what to ask of a backbone, how to score one response, how to sum up.

An evaluator is a frozen dataclass whose fields are its protocol's options. Its phases talk through
values: `samples` says what to generate or ask, `score` judges one response, `metrics` says how scores are summed up.
Unscored is not zero: what cannot be scored has value None with a reason, is counted, and never
enters a mean. This module imports no torch.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = [
    "Detection",
    "Detector",
    "WORLD_READER",
    "EvalTask",
    "Evaluator",
    "GroupedColors",
    "Interval",
    "Judge",
    "JudgeReply",
    "JudgeRequest",
    "Metric",
    "Need",
    "Picture",
    "Result",
    "Sample",
    "Score",
    "Tools",
]

World = Literal["photo", "shapes"]
Need = Literal["detector", "judge", "mplug"]
"""A detector, a vision language model that answers over HTTP, or DPG-Bench's official answerer."""
WORLD_READER = "the reader of the embedded world"
"""What protocols call the one that judges its images."""


class Picture(Protocol):
    """A picture that is read when it is looked at: a row of a table, a member of an archive, a drawn scene.

    Pictures are values: equal ones show the same.
    """

    @property
    def name(self) -> str:
        """What it is called in its data set, the same wherever the data set lies."""
        ...

    def open(self) -> Image:
        """Read it.

        Raises:
            UnreadableImageError: If it is missing or damaged.
        """
        ...


@dataclass(frozen=True)
class Sample:
    """One request to a backbone.

    Attributes:
        item_id: Unique in the evaluator's run, e.g. `"00012/0003"`.
        cluster_id: What draws of one item share (the prompt, the image): resampled together.
        kind: `"image"` asks for a picture of `prompt`, `"answer"` for a text about `images`.
        prompt: Text as the benchmark writes it.
        seed: Seed of the draw; equal (prompt, seed, settings) share one image between evaluators.
        images: The pictures a question is about: paths, or what opens as a picture.
        choices: Possible answers whose log-probabilities are asked for; none asks for a text.
        metadata: The benchmark's own record of the item.
    """

    item_id: str
    cluster_id: str
    kind: Literal["image", "answer"]
    prompt: str
    seed: int = 0
    images: tuple[Path | Picture, ...] = ()
    choices: tuple[str, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Score:
    """The judgement of one response.

    Attributes:
        item_id: The sample's.
        cluster_id: The sample's.
        raw: What was found (detections, the answer as given), JSON-ready.
        parsed: What the protocol read out of it, JSON-ready.
        status: `"scored"`; `"unparsed"` for an answer given that could not be read (scored by the protocol's
            rule); `"unscored"` for a response that is missing or unreadable (value None).
        value: The item's value, None exactly when unscored.
        reason: Why it failed or could not be scored; empty when there is nothing to say.
        group: The tag or category that metrics average by.
    """

    item_id: str
    cluster_id: str
    raw: Any
    parsed: Any
    status: Literal["scored", "unparsed", "unscored"]
    value: float | None
    reason: str = ""
    group: str = ""

    def __post_init__(self) -> None:
        if (self.status == "unscored") != (self.value is None):
            found = f"{self.value}, {self.status}"
            raise ValueError(f"{self.item_id}: value must be None exactly when unscored, found {found}.")
        if self.value is not None and not math.isfinite(self.value):
            raise ValueError(f"{self.item_id}: value must be finite, found {self.value}.")


@dataclass(frozen=True)
class Interval:
    """A 95% interval and the estimator that made it, e.g. `"prompt-clustered bootstrap, 10000 replicates"`."""

    low: float
    high: float
    estimator: str


@dataclass(frozen=True)
class Metric:
    """A number that a benchmark reports: one function of weighted clusters, whatever is asked of it.

    Attributes:
        name: Its name in a result.
        tally: Sums up the items of each cluster; metrics that share one share the draws of their intervals.
        statistic: Makes the number of the tally's totals under R weightings, [R]; NaN where there is none.
        unit: What it is counted in.
        groups: Groups of items it is about; none for all.
        clusters: What is resampled, e.g. `"prompt"`; empty where no interval is estimated.
        interval: How its own interval is estimated; a standard error fits a mean over items. A difference of two runs
            is always resampled.
    """

    name: str
    tally: Callable[[Sequence[Score]], Any]
    statistic: Callable[[Any], Any]
    unit: Literal["%", "points"] = "%"
    groups: tuple[str, ...] = ()
    clusters: str = ""
    interval: Literal["bootstrap", "standard error"] = "bootstrap"

    def aggregate(self, scores: Sequence[Score], weights: Any = None) -> Any:
        """Return the number under each weighting of the clusters, [R].

        Args:
            scores: All scores of a run.
            weights: [R, C] weights of the clusters in alphabetical order; None for weights of 1, with R = 1.
        """
        return self.statistic(self.tally(scores).totals(weights))


@dataclass(frozen=True)
class Result:
    """One cell of the leaderboard.

    Attributes:
        method: Name of the train task.
        backbone: Name of the card.
        evaluator: Name of the evaluation task.
        metrics: Values in their units; the first key is the headline, and what nobody asked for is not among them.
        intervals: Per metric, where one is estimated.
        num_samples: Scored samples.
        num_unparsed: Samples scored by the protocol's rule for unreadable answers.
        num_unscored: Samples without a value.
        seeds: Seeds of training and drawing.
        protocol: Protocol of the evaluator, e.g. `"geneval@af4902f"`.
        world: World of the images; worlds never share a table column.
        key: Content hash of everything that determines the numbers.
        provenance: Versions, hashes, settings, times.
    """

    method: str
    backbone: str
    evaluator: str
    metrics: Mapping[str, float | None]
    intervals: Mapping[str, Interval]
    num_samples: int
    num_unparsed: int
    num_unscored: int
    seeds: tuple[int, ...]
    protocol: str
    world: World
    key: str
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def headline(self) -> str:
        """Name of the first metric."""
        return next(iter(self.metrics))


@dataclass(frozen=True)
class Detection:
    """One detected instance.

    Attributes:
        label: Class name, in the benchmark's spelling.
        box: x0, y0, x1, y1 in pixels.
        score: Confidence in [0, 1].
        mask: [height, width] bool array of the instance, or None.
    """

    label: str
    box: tuple[float, float, float, float]
    score: float
    mask: Any = None


class Detector(Protocol):
    """Find instances in images and name their colours."""

    def detect(self, images: Sequence[Image]) -> list[list[Detection]]:
        """Return the raw detections of each image, in any order, not thresholded."""
        ...

    def colors(self, image: Image, detections: Sequence[Detection]) -> list[str]:
        """Return the colour of each detection, one of the benchmark's colour words."""
        ...


@runtime_checkable
class GroupedColors(Protocol):
    """Name the colours of several images' instances in one go, faster than image by image."""

    def grouped_colors(self, groups: Sequence[tuple[Image, Sequence[Detection]]]) -> list[list[str]]:
        """Return the colours of each group of instances of one image."""
        ...


@dataclass(frozen=True)
class JudgeRequest:
    """A question to a judge about one picture.

    Attributes:
        image: The picture, or the path of one.
        turns: What is said to the judge; what it answers to all but the last stands between, in `answers`.
        template: Name and version of the prompt's template.
        answers: Earlier answers, one fewer than `turns`.
        max_tokens: Largest length of the reply.
        schema: JSON schema that the reply must obey; None for free text.
        choices: Texts of which the reply must be one; empty for free text.
    """

    image: Any
    turns: tuple[str, ...]
    template: str
    answers: tuple[str, ...] = ()
    max_tokens: int = 512
    schema: str | None = None
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class JudgeReply:
    """What a judge answered: a text, or None and why there is none."""

    text: str | None
    reason: str = ""


class Judge(Protocol):
    """Answer questions about pictures in words."""

    def ask(self, requests: Sequence[JudgeRequest]) -> list[JudgeReply]:
        """Return a reply per request, in order."""
        ...


@dataclass(frozen=True)
class Tools:
    """What an evaluator may use besides the response itself.

    Attributes:
        detector: Finds instances and colours.
        judge: Answers questions about a picture; for DPG-Bench also the official answerer.
        close: Ends what was started for the tools; called once when no more is scored.
    """

    detector: Detector | None = None
    judge: Judge | None = None
    close: Callable[[], None] = lambda: None

    def __enter__(self) -> Tools:
        return self

    def __exit__(self, kind: type[BaseException] | None, *arguments: object) -> None:
        # A process that is made to end has no time for a judge's last questions.
        if kind is None or issubclass(kind, Exception):
            self.close()

    @property
    def record(self) -> dict[str, Any]:
        """What the tools are, for a result's provenance: models, digests, settings; JSON-ready."""
        found: dict[str, Any] = {}
        for name, tool in (("detector", self.detector), ("judge", self.judge)):
            if tool is not None:
                found[name] = copy.deepcopy(getattr(tool, "record", type(tool).__name__))
        return found


class Evaluator(ABC):
    """Ask, score and sum up by one benchmark's protocol; `benchmarks.kinds` has a base for each of the two kinds.

    Attributes:
        version: Raised when the benchmark's rules or readers change numbers.
        kind: Whether backbones draw or answer, or a harness of others asks them.
        judge_model: The judge, where one is needed.
        judge_revision: Its revision; empty for what the server has.
    """

    version: ClassVar[int] = 1
    kind: ClassVar[Literal["image", "answer", "harness"]]
    judge_model: str = ""
    judge_revision: str = ""

    @property
    @abstractmethod
    def protocol(self) -> str:
        """Name and version of the protocol."""

    @property
    def needs(self) -> tuple[Need, ...]:
        """Tools that scoring photographs takes; in the embedded world its reader stands in for each."""
        return ()

    def protocol_in(self, world: World) -> str:
        """Return the name of the protocol in a world, whose reader may judge in place of the protocol's own judge."""
        return self.protocol

    @abstractmethod
    def samples(self, world: World, data: Path | None, seeds: Sequence[int]) -> Iterator[Sample]:
        """Yield what to ask.

        Args:
            world: `"photo"` reads the official files below `data`; `"shapes"` builds the embedded world's set.
            data: Folder of the official files.
            seeds: Seeds of the draws.

        Raises:
            PrerequisiteError: If the data is missing or damaged.
        """

    @abstractmethod
    def score(self, samples: Sequence[Sample], responses: Sequence[Any], tools: Tools) -> list[Score]:
        """Judge responses in order; a response is an image, a text, or None where there is none."""

    @property
    @abstractmethod
    def metrics(self) -> tuple[Metric, ...]:
        """What scores are summed up to; the first is the headline."""


@dataclass(frozen=True)
class EvalTask:
    """An evaluation with a name on the command line and a column in the tables.

    Attributes:
        name: Name on the command line, e.g. `"geneval"`.
        title: Name in tables, e.g. `"GenEval"`.
        evaluator: The protocol with its options.
        worlds: Worlds it can run in.
        data: Name of its data set for `segros data fetch`; None where it reads none.
        paper: Where the published numbers stand, e.g. `"Table 1"`.
    """

    name: str
    title: str
    evaluator: Evaluator
    worlds: tuple[World, ...]
    data: str | None = None
    paper: str = ""

    @property
    def kind(self) -> Literal["image", "answer", "harness"]:
        """Whether backbones draw or answer, or a harness of others asks them."""
        return self.evaluator.kind
