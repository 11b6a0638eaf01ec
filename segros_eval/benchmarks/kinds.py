"""The two kinds of benchmark: one asks for images, the other asks questions about images.

A benchmark is a frozen dataclass with one of these as its base: it names its protocol, lists what it asks, judges one
response and sums up. What all of a kind have in common is here. This module imports no torch.
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from segros_eval.benchmarks.base import Evaluator, Picture, Sample, World
from segros_train.errors import PrerequisiteError

if TYPE_CHECKING:
    from segros_eval.benchmarks.folders import ImageFolder

__all__ = ["ImageBenchmark", "Question", "QuestionBenchmark", "check_counts"]


Question = tuple[str, Mapping[str, Any], tuple[Path | Picture, ...]]
"""Id, record and pictures of a question."""


def check_counts(evaluator: Any) -> None:
    """Raise ValueError where a field of a dataclass is a whole number below 1."""
    for field in dataclasses.fields(evaluator):
        value = getattr(evaluator, field.name)
        if isinstance(value, int) and not isinstance(value, bool) and value < 1:
            raise ValueError(f"{field.name} must be at least 1, found {value}.")


class ImageBenchmark(Evaluator):
    """Ask for images of prompts.

    Attributes:
        images_per_prompt: Draws of each prompt.
    """

    kind: ClassVar[Literal["image"]] = "image"
    images_per_prompt: int = 1

    @abstractmethod
    def prompts(self, world: World, data: Path | None) -> list[dict[str, Any]]:
        """Return the records of the evaluation set, each with its `prompt`.

        Args:
            world: `"photo"` reads the official files below `data`; `"shapes"` builds the embedded world's set.
            data: Folder of the official files.

        Raises:
            PrerequisiteError: If a file is missing or not the one of the protocol.
        """

    def prompt_ids(self, number: int, record: Mapping[str, Any]) -> tuple[str, str]:
        """Return the item and the cluster that a prompt's draws belong to: by default its place in the set."""
        return f"{number:05d}", f"{number:05d}"

    def samples(self, world: World, data: Path | None, seeds: Sequence[int]) -> Iterator[Sample]:
        """Yield `images_per_prompt` draws of each prompt and seed.

        Draw k of seed s has the drawing seed s * images_per_prompt + k, which also names the item ("00012/00003"):
        pooled seeds never collide, and more images per prompt keep those that seed 0 already drew.

        Args:
            world: See `prompts`.
            data: See `prompts`.
            seeds: Seeds of the run.

        Raises:
            PrerequisiteError: See `prompts`.
        """
        for number, record in enumerate(self.prompts(world, data)):
            item, cluster = self.prompt_ids(number, record)
            for seed in seeds:
                for draw in range(seed * self.images_per_prompt, (seed + 1) * self.images_per_prompt):
                    yield Sample(f"{item}/{draw:05d}", cluster, "image", record["prompt"], seed=draw, metadata=record)

    def folder_prompts(self, root: Path) -> Iterator[str]:
        """Yield what a folder in the benchmark's layout names its images by: prompts or items.

        Raises:
            PrerequisiteError: If the benchmark has no layout, or the folder is not in it.
        """
        raise self._without_layout(root)

    def read_folder(self, root: Path, world: World, data: Path | None, *, side_px: int | None = None) -> ImageFolder:
        """Read a folder in the benchmark's layout against the evaluation set.

        Args:
            root: The folder.
            world: See `prompts`.
            data: See `prompts`.
            side_px: Width and height that images must have; None for those of most.

        Raises:
            PrerequisiteError: If the benchmark has no layout, the folder is not in it, or the prompts are missing.
        """
        raise self._without_layout(root)

    def _without_layout(self, root: Path) -> PrerequisiteError:
        return PrerequisiteError(
            f"Cannot score {root}: {type(self).__name__} has no layout for folders of images",
            "Give it a `read_folder`.",
        )


class QuestionBenchmark(Evaluator):
    """Ask questions about images.

    Attributes:
        max_new_tokens: Largest length of an answer.
    """

    kind: ClassVar[Literal["answer"]] = "answer"
    max_new_tokens: int = 32

    @abstractmethod
    def questions(self, world: World, data: Path | None) -> Iterator[Question]:
        """Yield each question's id, its record and its pictures.

        Args:
            world: `"photo"` reads the official files below `data`; `"shapes"` builds the embedded world's set.
            data: Folder of the official files.

        Raises:
            PrerequisiteError: If the data is missing or damaged.
        """

    @abstractmethod
    def prompt(self, record: Mapping[str, Any]) -> str:
        """Return what is asked about a record."""

    def picture_id(self, item_id: str, record: Mapping[str, Any]) -> str:
        """Return what questions about the same picture share: by default each stands for itself."""
        return item_id

    def group(self, item_id: str, record: Mapping[str, Any]) -> str:
        """Return the category that a question belongs to; empty for none."""
        return ""

    def choices(self, record: Mapping[str, Any]) -> tuple[str, ...]:
        """Return the answers whose log-probabilities are asked for; none asks for a text."""
        return ()

    def samples(self, world: World, data: Path | None, seeds: Sequence[int]) -> Iterator[Sample]:
        """Yield every question once: an answer is decoded without chance, so seeds change nothing.

        Raises:
            PrerequisiteError: See `questions`.
        """
        for item_id, record, pictures in self.questions(world, data):
            yield Sample(
                item_id,
                self.picture_id(item_id, record),
                "answer",
                self.prompt(record),
                images=pictures,
                choices=self.choices(record),
                metadata={**record, "group": self.group(item_id, record)},
            )
