"""Plain colours: whether a photograph of one colour has it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from segros_eval.benchmarks.base import Metric, Sample, Score, Tools, World
from segros_eval.benchmarks.kinds import ImageBenchmark

CHANNELS = ("red", "green", "blue")
SUBJECTS = ("wall", "carpet", "curtain")


@dataclass(frozen=True)
class PlainColors(ImageBenchmark):
    """Ask for photographs of red, green and blue things; one is right where its mean pixel has most of that colour.

    Attributes:
        images_per_prompt: Draws of each prompt.
    """

    version: ClassVar[int] = 1
    """Raised when what is asked, or how it is scored, changes numbers."""

    images_per_prompt: int = 2

    @property
    def protocol(self) -> str:
        """Name and version of the protocol."""
        return "plain-colors@1"

    def prompts(self, world: World, data: Path | None) -> list[dict[str, Any]]:
        """Return a record for each subject in each colour."""
        return [
            {"prompt": f"a photo of a {color} {subject}", "color": color} for subject in SUBJECTS for color in CHANNELS
        ]

    def score(self, samples: Sequence[Sample], responses: Sequence[Any], tools: Tools) -> list[Score]:
        """Judge images in order; what is missing or unreadable is unscored."""
        return [_judged(sample, response) for sample, response in zip(samples, responses, strict=True)]

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The share of right images in percent, over all and by colour."""
        from segros_eval.statistics.tally import item_mean, item_tally, percent

        tally = item_tally(percent)
        groups: Mapping[str, tuple[str, ...]] = {"accuracy": (), **{color: (color,) for color in CHANNELS}}
        return tuple(item_mean(name, tally, *members, clusters="prompt") for name, members in groups.items())


def _judged(sample: Sample, response: Any) -> Score:
    import numpy as np

    from segros_eval.benchmarks.folders import read_response

    image, asked = read_response(response), sample.metadata["color"]
    if isinstance(image, str):
        return Score(sample.item_id, sample.cluster_id, None, None, "unscored", None, reason=image, group=asked)
    mean = np.asarray(image).mean(axis=(0, 1))
    found = CHANNELS[int(mean.argmax())]
    reason = "" if found == asked else f"the image is {found}"
    value = float(found == asked)
    return Score(sample.item_id, sample.cluster_id, mean.tolist(), found, "scored", value, reason=reason, group=asked)
