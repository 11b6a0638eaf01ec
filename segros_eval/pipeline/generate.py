"""From samples to responses: batched, resumable, sharded by item.

A response that is already in the store is not made again. Where a backbone refuses one item (`ValueError`: a prompt
it cannot take), that item is left without a response and the reason is kept. Where memory does not hold a batch, it is
halved for the rest of the run, which changes no response. Anything else is a fault of the program or of the machine
and stops the run.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, TypeVar

from segros_eval.benchmarks.base import Sample
from segros_eval.benchmarks.images import UnreadableImageError
from segros_eval.benchmarks.vqa.pictures import open_picture
from segros_eval.pipeline.official_files import benchmark_folder
from segros_eval.pipeline.store import AnswerStore, ImageStore
from segros_train.errors import MEMORY_ERRORS, is_out_of_memory, memory_shortage_named, release_memory

if TYPE_CHECKING:
    from segros_eval.pipeline.plan import Cell, Stage
    from segros_train.backbone import Backbone
    from segros_train.types import GenerationSettings

__all__ = ["BATCH_SIZE", "BatchSize", "Shard", "answer_questions", "build_samples", "draw_images", "subsample"]

Item = TypeVar("Item")
Advance = Callable[[int], None]

BATCH_SIZE = 32
"""Responses made at once where neither the settings nor a count of the device say how many."""

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Shard:
    """The part of the items that one process takes: every `num_ranks`-th from `rank` on."""

    rank: int = 0
    num_ranks: int = 1

    def of(self, items: Sequence[Item]) -> Sequence[Item]:
        """Return this process's items."""
        return items[self.rank :: self.num_ranks]


class BatchSize:
    """How many responses are made at once; halved where memory does not hold them, and never raised again."""

    def __init__(self, value: int) -> None:
        self.value = value

    def halve(self, tried: int) -> None:
        """Take half of what was tried, and say so."""
        self.value = tried // 2
        logger.warning("Memory does not hold %d responses at once; going on with %d.", tried, self.value)


def build_samples(stage: Stage, cell: Cell) -> list[Sample]:
    """Return what one evaluation asks of one model.

    Raises:
        PrerequisiteError: If the evaluation's data is missing.
    """
    data = benchmark_folder(cell.task, stage.card.world)
    return subsample(list(cell.task.evaluator.samples(stage.card.world, data, (stage.seed,))), cell.limit)


def subsample(samples: Sequence[Sample], limit: int | None) -> list[Sample]:
    """Keep the samples of `limit` prompts, spread evenly, so that every category stays in proportion."""
    clusters = list(dict.fromkeys(sample.cluster_id for sample in samples))
    if limit is None or limit >= len(clusters):
        return list(samples)
    kept = {clusters[index * len(clusters) // limit] for index in range(limit)}
    return [sample for sample in samples if sample.cluster_id in kept]


@memory_shortage_named("Drawing one image at a time", "end other programs there, or take another device with --device")
def draw_images(
    backbone: Backbone,
    samples: Sequence[Sample],
    store: ImageStore,
    *,
    settings: GenerationSettings,
    batch_size: BatchSize,
    advance: Advance,
    shard: Shard = Shard(),
) -> dict[str, str]:
    """Draw the images that `store` lacks.

    Args:
        backbone: What draws.
        samples: What to draw.
        store: Where images lie and go.
        settings: Sampling settings.
        batch_size: Images drawn at once.
        advance: Told how many images are there, as they come.
        shard: This process's part.

    Returns:
        Why an image could not be drawn, by item id.

    Raises:
        MemoryShortageError: If memory does not hold a single image's draw.
    """

    def draw(batch: Sequence[Sample]) -> Iterator[None]:
        images = backbone.generate(
            [sample.prompt for sample in batch], seeds=[sample.seed for sample in batch], settings=settings
        )
        for sample, image in zip(batch, images, strict=True):
            store.put(sample, image)
            yield

    wanted = shard.of(list({store.path(sample): sample for sample in samples}.values()))
    return _respond(wanted, store.missing(wanted), draw, batch_size=batch_size, advance=advance)


@memory_shortage_named(
    "Answering one question at a time", "end other programs there, or take another device with --device"
)
def answer_questions(
    backbone: Backbone,
    samples: Sequence[Sample],
    store: AnswerStore,
    *,
    max_new_tokens: int,
    batch_size: BatchSize,
    advance: Advance,
    shard: Shard = Shard(),
) -> dict[str, str]:
    """Answer the questions that `store` lacks: in words, or by the log-probabilities of their choices.

    Args:
        backbone: What answers.
        samples: What to answer.
        store: Where answers lie and go.
        max_new_tokens: Largest length of an answer.
        batch_size: Questions answered at once.
        advance: Told how many answers are there, as they come.
        shard: This process's part.

    Returns:
        Why a question could not be answered, by item id.

    Raises:
        MemoryShortageError: If memory does not hold a single question.
    """

    def answer(batch: Sequence[Sample]) -> Iterator[None]:
        for _, alike in groupby(batch, key=lambda sample: bool(sample.choices)):
            part = list(alike)
            for sample, given in zip(part, _given(backbone, part, max_new_tokens), strict=True):
                store.put(sample, given)
                yield

    wanted = shard.of(samples)
    # Questions of like length share a batch, so that little of it is padding; the longest show at once whether
    # memory suffices. Answers do not depend on it.
    pending = sorted(store.missing(wanted), key=_longest_first)
    return _respond(wanted, pending, answer, batch_size=batch_size, advance=advance)


def _longest_first(sample: Sample) -> tuple[bool, int, str]:
    return not sample.choices, -len(sample.prompt), sample.item_id


def _given(backbone: Backbone, batch: Sequence[Sample], max_new_tokens: int) -> Sequence[str | list[float]]:
    """Return the answers to questions that all have choices, or all have none."""
    images = [[open_picture(picture) for picture in sample.images] for sample in batch]
    questions = [sample.prompt for sample in batch]
    if batch[0].choices:
        return backbone.choice_logprobs(images, questions, [sample.choices for sample in batch])
    return backbone.answer(images, questions, max_new_tokens=max_new_tokens)


def _respond(
    wanted: Sequence[Sample],
    pending: Sequence[Sample],
    make: Callable[[Sequence[Sample]], Iterator[None]],
    *,
    batch_size: BatchSize,
    advance: Advance,
) -> dict[str, str]:
    """Make the pending responses batch by batch; `make` yields once per response it has stored."""
    advance(len(wanted) - len(pending))
    refused: dict[str, ValueError | UnreadableImageError] = {}
    start = 0
    while start < len(pending):
        batch = pending[start : start + batch_size.value]
        is_first, is_whole = start == 0 and len(wanted) == len(pending), len(batch) == batch_size.value
        num_settled, reasons = _attempt(batch, make, batch_size, advance)
        start += num_settled
        refused.update(reasons)
        if len(refused) == len(wanted) or (is_first and is_whole and len(refused) == len(batch)):
            # Not one response has come: the fault is not the items'.
            raise next(iter(refused.values()))
    return {item_id: str(error) for item_id, error in refused.items()}


def _attempt(
    batch: Sequence[Sample],
    make: Callable[[Sequence[Sample]], Iterator[None]],
    batch_size: BatchSize,
    advance: Advance,
) -> tuple[int, dict[str, ValueError | UnreadableImageError]]:
    """Make a batch, and one by one what is left of it where it is refused.

    Returns:
        How many of its first items are settled, which is all unless memory ran out; and the items refused alone.
    """
    num_made, is_refused = 0, False
    try:
        for _ in make(batch):
            num_made += 1
            advance(1)
    except (ValueError, UnreadableImageError) as error:
        if len(batch) == 1:
            return 1, {batch[0].item_id: error}
        is_refused = True
    except MEMORY_ERRORS as error:
        if len(batch) == 1 or not is_out_of_memory(error):
            raise
        batch_size.halve(len(batch))
    if not is_refused:
        if num_made < len(batch):
            release_memory()
        return num_made, {}
    refused: dict[str, ValueError | UnreadableImageError] = {}
    for sample in batch[num_made:]:
        refused |= _attempt([sample], make, batch_size, advance)[1]
    return len(batch), refused
