"""Every declared method keeps the contract of `Method`, on embeddings of any backbone."""

from __future__ import annotations

import pickle
from dataclasses import FrozenInstanceError, dataclass, fields, is_dataclass

import pytest
import torch
from steps import draws_of
from torch import Generator, Tensor

from segros_train.method import Method, TrainTask
from segros_train.types import Embeddings, Supervision

BATCH = 3


@dataclass(frozen=True)
class Situation:
    """What a family of backbones would hand to a method."""

    name: str
    image_grid: tuple[int, int]
    latent_grid: tuple[int, int]
    ratios: tuple[float, ...] | None


SITUATIONS = (
    Situation("one ratio per batch", (4, 4), (4, 4), (0.75, 0.75, 0.75)),
    Situation("a ratio per sample", (6, 6), (6, 6), (0.2, 0.7, 1.0)),
    Situation("two grids", (5, 5), (8, 8), (0.5, 0.9, 0.1)),
    Situation("no schedule", (4, 6), (4, 6), None),
)


def embeddings(situation: Situation) -> Embeddings:
    """Return random embeddings with captions of unequal length, the shortest of a single token."""
    rng = Generator().manual_seed(7)
    lengths = torch.tensor([9, 1, 5])
    return Embeddings(
        text=torch.randn(BATCH, 9, 12, generator=rng),
        text_valid=torch.arange(9) < lengths[:, None],
        image=torch.randn(BATCH, situation.image_grid[0] * situation.image_grid[1], 12, generator=rng),
        image_grid=situation.image_grid,
        latent_grid=situation.latent_grid,
    )


def ratio(situation: Situation) -> Tensor | None:
    return None if situation.ratios is None else torch.tensor(situation.ratios)


def supervise(task: TrainTask, situation: Situation, *, seed: int = 0) -> Supervision:
    assert task.method is not None
    return task.method.supervise(embeddings(situation), ratio(situation), draws_of(BATCH, seed))


def tensors(supervision: Supervision) -> dict[str, Tensor]:
    named = {field.name: getattr(supervision, field.name) for field in fields(supervision)}
    return {name: value for name, value in named.items() if isinstance(value, Tensor)}


situations = pytest.mark.parametrize("situation", SITUATIONS, ids=lambda situation: situation.name)
scheduled = pytest.mark.parametrize(
    "situation", [situation for situation in SITUATIONS if situation.ratios], ids=lambda situation: situation.name
)


def test_a_method_is_a_frozen_value_that_travels_between_processes(trained_task: TrainTask) -> None:
    method = trained_task.method
    assert isinstance(method, Method)
    assert is_dataclass(method)
    assert pickle.loads(pickle.dumps(method)) == method
    assert hash(method) == hash(pickle.loads(pickle.dumps(method)))
    for field in fields(method):
        with pytest.raises(FrozenInstanceError):
            setattr(method, field.name, None)


@situations
def test_a_supervision_fits_the_image_it_was_made_for(trained_task: TrainTask, situation: Situation) -> None:
    seen = embeddings(situation)
    supervision = supervise(trained_task, situation)
    num_cells = situation.latent_grid[0] * situation.latent_grid[1]
    supervision.check(num_visual=seen.image.shape[1], num_cells=num_cells)
    assert all(len(value) == BATCH for value in tensors(supervision).values())
    assert supervision.masked is None or supervision.masked.dtype == torch.bool
    assert supervision.target is None or supervision.target.dtype == torch.bool


@situations
def test_hints_are_distinct_patches_in_raster_order(trained_task: TrainTask, situation: Situation) -> None:
    hints = supervise(trained_task, situation).hints
    assert hints is None or bool((hints.diff(dim=1) > 0).all())


@situations
def test_something_conditions_the_image_and_something_bears_the_loss(
    trained_task: TrainTask, situation: Situation
) -> None:
    supervision = supervise(trained_task, situation)
    assert supervision.caption or supervision.hints is not None
    bearing = supervision.masked if supervision.target is None else supervision.target
    if situation.ratios is not None:
        assert bearing is not None
    assert bearing is None or bool(bearing.any(dim=1).all())


@scheduled
def test_the_native_schedule_decides_how_many_cells_are_hidden(trained_task: TrainTask, situation: Situation) -> None:
    masked = supervise(trained_task, situation).masked
    assert masked is not None
    assert situation.ratios is not None
    expected = [share * masked.shape[1] for share in situation.ratios]
    for found, wanted in zip(masked.sum(dim=1).tolist(), expected, strict=True):
        assert wanted - 1e-3 <= found < wanted + 1


@situations
def test_equal_generators_give_equal_supervisions(trained_task: TrainTask, situation: Situation) -> None:
    once, again = supervise(trained_task, situation, seed=5), supervise(trained_task, situation, seed=5)
    assert once.caption == again.caption
    assert tensors(once).keys() == tensors(again).keys()
    assert all(torch.equal(value, tensors(again)[name]) for name, value in tensors(once).items())


@situations
def test_a_method_leaves_the_embeddings_and_the_global_generator_alone(
    trained_task: TrainTask, situation: Situation
) -> None:
    assert trained_task.method is not None
    seen, shares = embeddings(situation), ratio(situation)
    state = torch.get_rng_state()
    supervision = trained_task.method.supervise(seen, shares, draws_of(BATCH))
    untouched = embeddings(situation)
    assert torch.equal(seen.text, untouched.text)
    assert torch.equal(seen.image, untouched.image)
    assert torch.equal(seen.text_valid, untouched.text_valid)
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(value.requires_grad for value in tensors(supervision).values())


def test_half_precision_embeddings_give_a_valid_supervision(trained_task: TrainTask) -> None:
    assert trained_task.method is not None
    seen = embeddings(SITUATIONS[0])
    half = Embeddings(seen.text.bfloat16(), seen.text_valid, seen.image.bfloat16(), seen.image_grid, seen.latent_grid)
    trained_task.method.supervise(half, ratio(SITUATIONS[0]), draws_of(BATCH)).check(num_visual=16, num_cells=16)


@situations
def test_a_method_that_needs_no_embeddings_supervises_by_grids(trained_task: TrainTask, situation: Situation) -> None:
    assert trained_task.method is not None
    if trained_task.method.needs_embeddings:
        return
    ratios = None if situation.ratios is None else torch.tensor(situation.ratios)
    blank = Embeddings.of_no_width(
        BATCH, image_grid=situation.image_grid, latent_grid=situation.latent_grid, device=torch.device("cpu")
    )
    whole = trained_task.method.supervise(embeddings(situation), ratios, draws_of(BATCH))
    found = trained_task.method.supervise(blank, ratios, draws_of(BATCH))
    for name in ("caption", "hints", "masked", "target"):
        torch.testing.assert_close(getattr(found, name), getattr(whole, name), rtol=0, atol=0)
