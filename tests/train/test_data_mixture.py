import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_training import ToyDialogues, ToyImages, noisy_pixels

from segros_train.data.batches import EpochOrder, MicroBatches, Share, generation_batches, instruction_batches, stream


def images(*, rank: int = 0, num_ranks: int = 1, batch_size: int = 4, seed: int = 0, **source: object) -> MicroBatches:
    return generation_batches(
        ToyImages(**source), transform=noisy_pixels, batch_size=batch_size, seed=seed, share=Share(rank, num_ranks)
    )


@settings(max_examples=25, deadline=None)
@given(size=st.integers(1, 50), epoch=st.integers(0, 5), seed=st.integers(0, 10))
def test_every_item_is_drawn_once_per_epoch(size: int, epoch: int, seed: int) -> None:
    order = EpochOrder(size, seed=seed, task="generation")
    assert sorted(order[epoch * size + offset] for offset in range(size)) == list(range(size))


def test_an_order_depends_on_seed_task_and_epoch_and_on_no_earlier_draw() -> None:
    def epoch(number: int, *, seed: int = 0, task: str = "generation", order: EpochOrder | None = None) -> list[int]:
        order = order or EpochOrder(30, seed=seed, task=task)
        return [order[30 * number + offset] for offset in range(30)]

    shared = EpochOrder(30, seed=0, task="generation")
    assert [epoch(number, order=shared) for number in (2, 0, 1, 2)] == [epoch(number) for number in (2, 0, 1, 2)]
    assert len({tuple(epoch(1, seed=seed, task=task)) for seed in (0, 1) for task in ("generation", "other")}) == 4
    assert epoch(0) != epoch(1)


def test_the_processes_share_a_micro_step_without_overlap() -> None:
    whole = images(batch_size=6)
    parts = [images(batch_size=2, rank=rank, num_ranks=3) for rank in range(3)]
    for micro_step in (0, 5):
        shares = [part[micro_step].batch for part in parts]
        expected = whole[micro_step].batch
        assert [batch.item_ids for batch in shares] == [expected.item_ids[rank::3] for rank in range(3)]
        assert all(torch.equal(batch.images, expected.images[rank::3]) for rank, batch in enumerate(shares))


def test_a_stream_started_in_the_middle_goes_on_with_the_same_batches() -> None:
    whole = list(stream(images(), start=0, stop=9, num_workers=0))
    rest = list(stream(images(), start=4, stop=9, num_workers=0))
    assert len(rest) == 5
    for first, second in zip(whole[4:], rest, strict=True):
        assert first.batch.item_ids == second.batch.item_ids
        assert torch.equal(first.batch.images, second.batch.images)


def test_the_same_item_is_cropped_anew_in_each_epoch() -> None:
    first, second = (images(size=1, batch_size=1)[micro_step].batch.images for micro_step in (0, 1))
    assert not torch.equal(first, second)


def test_captions_and_dialogues_stay_with_their_images() -> None:
    batch = images()[3].batch
    for member, item_id in enumerate(batch.item_ids):
        index = int(item_id.removeprefix("image-"))
        assert batch.captions[member] == f"grey {index}"
        assert batch.images[member].mean() == pytest.approx(index * 10 / 127.5 - 1, abs=0.02)
    dialogues = instruction_batches(ToyDialogues(), transform=noisy_pixels, batch_size=3, seed=0, share=Share())
    batch = dialogues[0].batch
    assert [f"dialogue-{turns[0].answer}" for turns in batch.dialogues] == list(batch.item_ids)
    assert batch.images.shape == (3, 3, 4, 4) and batch.images.dtype == torch.float32


def test_an_unreadable_item_is_left_out_by_name_and_never_replaced() -> None:
    whole, damaged = images()[0], images(broken=frozenset({index_of(images()[0].batch.item_ids[1])}))[0]
    assert damaged.batch.item_ids == whole.batch.item_ids[:1] + whole.batch.item_ids[2:]
    assert torch.equal(damaged.batch.images, whole.batch.images[[0, 2, 3]])
    ((item, message),) = damaged.unreadable
    assert item == f"generation:{index_of(whole.batch.item_ids[1])}" and whole.batch.item_ids[1] in message


def index_of(item_id: str) -> int:
    return int(item_id.removeprefix("image-"))
