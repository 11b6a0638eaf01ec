"""GenEval: does an image show the objects, counts, colours and positions its prompt asks for?

A detector finds instances, fixed rules (`geneval_rules`) judge them, and the headline is the unweighted
mean of the six tags' shares of correct images. In the embedded world the prompts come from the world's
own objects, in the same grammar, schema and tags.

Source: djghosh13/geneval@af4902f (prompts/evaluation_metadata.jsonl, evaluation/evaluate_images.py,
evaluation/summary_scores.py).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from segros_eval.benchmarks.base import Detection, Detector, GroupedColors, Metric, Need, Sample, Score, Tools, World
from segros_eval.benchmarks.kinds import ImageBenchmark, check_counts
from segros_train.errors import PrerequisiteError
from segros_train.files import file_sha256

if TYPE_CHECKING:
    from PIL.Image import Image

    from segros_eval.benchmarks.folders import ImageFolder
    from segros_eval.benchmarks.geneval.rules import Kept

__all__ = ["METADATA_FILE", "TAGS", "GenEval"]

TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
METADATA_FILE = "evaluation_metadata.jsonl"

_OFFICIAL_METADATA = "5c48e0813e812e3c373fa5c8ed07a8f0a483be30272b4427b0559c8048e67c13"
_RULE_FIELDS = (
    "threshold",
    "counting_threshold",
    "max_objects",
    "max_overlap",
    "position_threshold",
    "metadata_sha256",
    "detector",
)
_IMAGES_AT_ONCE = 16


@dataclass(frozen=True)
class GenEval(ImageBenchmark):
    """Score images by the rules of GenEval.

    Attributes:
        threshold: Score an instance must exceed.
        counting_threshold: The same for the tag `counting`.
        max_objects: Most instances of a class that are looked at.
        max_overlap: IoU below which instances of a class both stay; 1.0 suppresses nothing.
        position_threshold: Share of the summed sizes by which two objects must be apart to be related.
        images_per_prompt: Draws of each prompt.
        shapes_prompts_per_tag: Most prompts of each tag in the embedded world.
        metadata_sha256: Digest of the prompts' file; another file is another benchmark.
        detector: What runs the official detector's weights: transformers here, or mmdet 3.x itself in an environment
            of its own, which pre-processes a little differently.
    """

    version: ClassVar[int] = 1

    threshold: float = 0.3
    counting_threshold: float = 0.9
    max_objects: int = 16
    max_overlap: float = 1.0
    position_threshold: float = 0.1
    images_per_prompt: int = 4
    shapes_prompts_per_tag: int = 20
    metadata_sha256: str = _OFFICIAL_METADATA
    detector: Literal["transformers", "mmdet"] = "transformers"

    @property
    def needs(self) -> tuple[Need, ...]:
        """The detector."""
        return ("detector",)

    @property
    def min_score(self) -> float:
        """Score that an instance must exceed to be looked at under any tag."""
        return min(self.threshold, self.counting_threshold)

    def __post_init__(self) -> None:
        check_counts(self)

    @property
    def protocol(self) -> str:
        """Name, commit and every departure from the official rules."""
        changed = [
            f"{field.name}={getattr(self, field.name)}"
            for field in dataclasses.fields(self)
            if field.name in _RULE_FIELDS and getattr(self, field.name) != field.default
        ]
        return " ".join(["geneval@af4902f", *changed])

    def prompts(self, world: World, data: Path | None) -> list[dict[str, Any]]:
        """Return the records of the evaluation set, in the official schema and order.

        Args:
            world: `"photo"` reads the official file below `data`; `"shapes"` builds the embedded world's set.
            data: Folder of the official file.

        Raises:
            PrerequisiteError: If the official file is missing or not the one of the protocol.
        """
        if world == "shapes":
            from segros_train.data.shapes.captions import geneval_metadata

            return geneval_metadata(self.shapes_prompts_per_tag)
        path = None if data is None else data / METADATA_FILE
        if path is None or not path.is_file():
            place = "no data folder was given" if path is None else f"{path} does not exist"
            raise PrerequisiteError(
                f"GenEval's prompts are missing: {place}",
                "Get them with `segros data fetch geneval`.",
            )
        digest = file_sha256(path)
        if digest != self.metadata_sha256:
            raise PrerequisiteError(
                f"{path} is not the prompt file of {self.protocol}: its sha256 is {digest}, expected "
                f"{self.metadata_sha256}",
                "Fetch it again with `segros data fetch geneval`, or name its digest with "
                "--set metadata_sha256=..., which makes it a protocol of its own.",
            )
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]

    def folder_prompts(self, root: Path) -> Iterator[str]:
        """Yield the prompts that a folder in the official layout says it shows.

        Raises:
            PrerequisiteError: If the layout is not found.
        """
        from segros_eval.benchmarks.geneval.folder import folder_prompts

        return folder_prompts(root)

    def read_folder(self, root: Path, world: World, data: Path | None, *, side_px: int | None = None) -> ImageFolder:
        """Read a folder in the official layout against the evaluation set; see `geneval_folder`.

        Raises:
            PrerequisiteError: If the layout is not found, or the prompts are missing.
        """
        from segros_eval.benchmarks.geneval.folder import read_geneval_folder

        return read_geneval_folder(
            root, prompts=self.prompts(world, data), images_per_prompt=self.images_per_prompt, side_px=side_px
        )

    def score(self, samples: Sequence[Sample], responses: Sequence[Any], tools: Tools) -> list[Score]:
        """Judge images, a few at a time.

        Args:
            samples: Samples with the official record as metadata.
            responses: Per sample an image, the path of one, or None; what is missing or unreadable is unscored.
            tools: Needs the detector.

        Raises:
            PrerequisiteError: If there is no detector.
        """
        if tools.detector is None:
            raise PrerequisiteError(
                "GenEval finds objects with a detector, and none was opened",
                "Open one with segros_eval.pipeline.tools.open_tools.",
            )
        scores: list[Score] = []
        for start in range(0, len(samples), _IMAGES_AT_ONCE):
            window = slice(start, start + _IMAGES_AT_ONCE)
            scores += self._score_window(samples[window], responses[window], tools.detector)
        return scores

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """`overall` (mean of the tags), the six tags, images and prompts, in percent.

        Only scored images count. A tag without any has no value, and neither has then the overall. A prompt counts as
        correct when one of its images is; prompts with an unscored image are left out of that share.
        """
        from segros_eval.statistics.tally import item_mean, item_tally, mean_of_groups

        images = item_tally()
        return (
            Metric("overall", images, lambda totals: 100 * mean_of_groups(totals, TAGS), clusters="prompt"),
            *(item_mean(tag, images, tag, factor=100, clusters="prompt") for tag in TAGS),
            item_mean("image_accuracy", images, factor=100, clusters="prompt"),
            item_mean("prompt_accuracy", lambda scores: images(_by_prompt(scores)), factor=100, clusters="prompt"),
        )

    def _score_window(self, samples: Sequence[Sample], responses: Sequence[Any], detector: Detector) -> list[Score]:
        from segros_eval.benchmarks.folders import read_response
        from segros_eval.benchmarks.geneval.rules import color_questions

        read = [read_response(response) for response in responses]
        good = [(sample, image) for sample, image in zip(samples, read, strict=True) if not isinstance(image, str)]
        detections = detector.detect([image for _, image in good])
        kept = [self._keep(sample, found) for (sample, _), found in zip(good, detections, strict=True)]
        asked = [color_questions(sample.metadata, found) for (sample, _), found in zip(good, kept, strict=True)]
        groups = [(image, found) for (_, image), of_image in zip(good, asked, strict=True) for found in of_image]
        named = iter(_colors(detector, groups))
        judged = {
            sample.item_id: self._judge(sample, found, [next(named) for _ in of_image])
            for (sample, _), found, of_image in zip(good, kept, asked, strict=True)
        }
        return [
            _unscored(sample, image) if isinstance(image, str) else judged[sample.item_id]
            for sample, image in zip(samples, read, strict=True)
        ]

    def _keep(self, sample: Sample, detections: Sequence[Detection]) -> Kept:
        from segros_eval.benchmarks.geneval.rules import keep

        threshold = self.counting_threshold if sample.metadata["tag"] == "counting" else self.threshold
        return keep(detections, threshold=threshold, max_objects=self.max_objects, max_overlap=self.max_overlap)

    def _judge(self, sample: Sample, kept: Kept, colors: Sequence[Sequence[str]]) -> Score:
        """Judge an image by its kept instances and the colours of those that are asked for, clause by clause."""
        from segros_eval.benchmarks.geneval.rules import evaluate

        answers = iter(colors)
        verdict = evaluate(sample.metadata, kept, lambda _: next(answers), position_threshold=self.position_threshold)
        boxes = {label: [[*found.box, found.score] for found in instances] for label, instances in kept.items()}
        return Score(
            item_id=sample.item_id,
            cluster_id=sample.cluster_id,
            raw={"kept": boxes, "colors": [[label, list(named)] for label, named in verdict.colors]},
            parsed=verdict.correct,
            status="scored",
            value=float(verdict.correct),
            reason=verdict.reason,
            group=sample.metadata["tag"],
        )


def _colors(detector: Detector, groups: Sequence[tuple[Image, Sequence[Detection]]]) -> list[list[str]]:
    """Return the colours of each group of instances, all groups at once where the detector can."""
    if isinstance(detector, GroupedColors):
        return detector.grouped_colors(groups)
    return [detector.colors(image, found) for image, found in groups]


def _unscored(sample: Sample, reason: str) -> Score:
    tag = sample.metadata["tag"]
    return Score(sample.item_id, sample.cluster_id, None, None, "unscored", None, reason=reason, group=tag)


def _by_prompt(scores: Sequence[Score]) -> list[Score]:
    """Return a score per prompt: whether any of its images is correct, unscored where an image is."""
    prompts: dict[str, list[Score]] = {}
    for score in scores:
        prompts.setdefault(score.cluster_id, []).append(score)
    merged = []
    for prompt_id, members in prompts.items():
        values = [score.value for score in members if score.value is not None]
        if len(values) == len(members):
            merged.append(Score(prompt_id, prompt_id, None, None, "scored", max(values), group=members[0].group))
    return merged
