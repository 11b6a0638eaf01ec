"""Micro-batches as a function of their number.

The order of a data set is a permutation drawn from (seed, task, epoch), one after the other without gap.
Micro-batch m of process r of R takes the positions (m b + j) R + r for j < b, so that nothing but m has
to be known to go on where a run was killed, and workers change speed only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch
from torch import Generator, Tensor
from torch.utils.data import DataLoader, Dataset

from segros_train.data.reading import DataError
from segros_train.draws import Draws, keyed_generator
from segros_train.types import Crop, GenerationBatch, InstructionBatch

if TYPE_CHECKING:
    from segros_train.backbone import ImageTransform
    from segros_train.data.samples import GenerationSample, GenerationSource, InstructionSample, InstructionSource

__all__ = [
    "EpochOrder",
    "MicroBatch",
    "MicroBatches",
    "Share",
    "fixed_crop",
    "generation_batches",
    "instruction_batches",
    "stream",
]

Batch = TypeVar("Batch", GenerationBatch, InstructionBatch)


@dataclass(frozen=True)
class Share:
    """Which part of every micro-step one process takes."""

    rank: int = 0
    num_ranks: int = 1


@dataclass(frozen=True)
class MicroBatch(Generic[Batch]):
    """A batch and the errors of the items that are missing from it because they could not be read."""

    batch: Batch | None
    unreadable: tuple[tuple[str, str], ...]


class EpochOrder:
    """The endless order in which the items of a data set are drawn: each once per epoch."""

    def __init__(self, size: int, *, seed: int, task: str) -> None:
        if size < 1:
            raise ValueError(f"The {task} data set is empty.")
        self._size, self._seed, self._task = size, seed, task
        self._epoch = -1
        self._permutation = torch.empty(0, dtype=torch.long)

    def __getitem__(self, position: int) -> int:
        """Return the index of the item drawn at a position."""
        epoch, offset = divmod(position, self._size)
        if epoch != self._epoch:
            rng = keyed_generator(self._seed, "order", self._task, epoch)
            self._epoch, self._permutation = epoch, torch.randperm(self._size, generator=rng)
        return int(self._permutation[offset])


class MicroBatches(Dataset[MicroBatch[Batch]], Generic[Batch]):
    """The micro-batches of one task, by number."""

    def __init__(
        self,
        source: Sequence[Any] | GenerationSource | InstructionSource,
        collate: Callable[[Sequence[Any], Tensor, Draws], Batch],
        *,
        task: str,
        transform: ImageTransform,
        batch_size: int,
        seed: int,
        share: Share,
        crop: Crop = "random",
    ) -> None:
        self._source = source
        self._collate: Callable[[Sequence[Any], Tensor, Draws], Batch] = collate
        self._task, self._transform, self._batch_size = task, transform, batch_size
        self._seed, self._share, self._crop = seed, share, crop
        self._order = EpochOrder(len(source), seed=seed, task=task)

    def __getitem__(self, micro_step: int) -> MicroBatch[Batch]:
        """Return a micro-batch; what is drawn for an item depends on its position alone, a fixed crop on its id."""
        samples, images, places, unreadable = [], [], [], []
        for member in range(self._batch_size):
            position = (micro_step * self._batch_size + member) * self._share.num_ranks + self._share.rank
            index = self._order[position]
            try:
                sample = self._source[index]
                is_fixed = self._crop == "fixed"
                rng = fixed_crop(sample.item_id) if is_fixed else keyed_generator(self._seed, self._task, position)
                images.append(self._transform(sample.image, rng))
            except DataError as error:
                unreadable.append((f"{self._task}:{index}", str(error)))
            else:
                samples.append(sample)
                places.append(position)
        draws = Draws(self._seed, micro_step, tuple(places))
        batch = self._collate(samples, torch.stack(images), draws) if samples else None
        return MicroBatch(batch, tuple(unreadable))


def fixed_crop(item_id: str) -> Generator:
    """Return the source of an item's one crop, the same in every epoch and run."""
    return keyed_generator("crop", item_id)


def generation_batches(source: GenerationSource, **arguments: Any) -> MicroBatches[GenerationBatch]:
    """Return micro-batches of images with captions; arguments as `MicroBatches`."""
    return MicroBatches(source, _collate_generation, task="generation", **arguments)


def instruction_batches(source: InstructionSource, **arguments: Any) -> MicroBatches[InstructionBatch]:
    """Return micro-batches of images with dialogues; arguments as `MicroBatches`."""
    return MicroBatches(source, _collate_instruction, task="instruction", **arguments)


def stream(batches: MicroBatches[Batch], *, start: int, stop: int, num_workers: int) -> Iterator[MicroBatch[Batch]]:
    """Yield the micro-batches of [start, stop) in order.

    Args:
        batches: What to draw from.
        start: First micro-step.
        stop: One past the last micro-step.
        num_workers: Processes that read ahead; 0 reads in this one.
    """
    loader = DataLoader(batches, batch_size=None, sampler=range(start, stop), num_workers=num_workers)
    return iter(loader)


def _collate_generation(samples: Sequence[GenerationSample], images: Tensor, draws: Draws) -> GenerationBatch:
    latents = tuple(sample.latents for sample in samples)
    return GenerationBatch(
        images=images,
        captions=tuple(sample.caption for sample in samples),
        item_ids=tuple(sample.item_id for sample in samples),
        draws=draws,
        latents=latents if any(latent is not None for latent in latents) else (),
    )


def _collate_instruction(samples: Sequence[InstructionSample], images: Tensor, draws: Draws) -> InstructionBatch:
    return InstructionBatch(
        images=images,
        dialogues=tuple(sample.dialogue for sample in samples),
        item_ids=tuple(sample.item_id for sample in samples),
    )
