"""Responses are made once, in any batch, by any rank; what an item cannot have is told, never invented."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from segros_eval.benchmarks.base import Sample
from segros_eval.benchmarks.vqa.pictures import ScenePicture
from segros_eval.pipeline.generate import BatchSize, Shard, answer_questions, draw_images, subsample
from segros_eval.pipeline.store import AnswerStore, ImageStore
from segros_train.backbone import Backbone
from segros_train.errors import MemoryShortageError
from segros_train.types import GenerationSettings


class Painter:
    """Draws a plain image whose colour is the seed; refuses some prompts; remembers its batches."""

    def __init__(self, refuses: Sequence[str] = (), error: type[Exception] = ValueError) -> None:
        self.refuses, self.error, self.batches = tuple(refuses), error, list[list[str]]()

    def generate(self, prompts: Sequence[str], *, seeds: Sequence[int], settings: Any) -> Iterator[Image.Image]:
        self.batches.append(list(prompts))
        for prompt, seed in zip(prompts, seeds, strict=True):
            if prompt in self.refuses:
                raise self.error(f"cannot draw {prompt!r}")
            yield Image.new("RGB", (4, 4), (seed, 0, 0))

    def answer(self, images: Any, questions: Sequence[str], *, max_new_tokens: int) -> list[str]:
        self.batches.append(list(questions))
        return [f"{question} {pictures[0].size}" for question, pictures in zip(questions, images, strict=True)]


def samples(count: int) -> list[Sample]:
    return [Sample(f"{i}", f"{i // 2}", "image", f"prompt {i}", seed=i) for i in range(count)]


def store(folder: Path) -> ImageStore:
    return ImageStore(folder, settings=GenerationSettings(num_steps=1), backbone_key="key")


def draw(painter: Painter, asked: Sequence[Sample], images: ImageStore, **more: Any) -> dict[str, str]:
    settings = GenerationSettings(num_steps=1)
    more = {"advance": lambda count: None, "batch_size": BatchSize(3), **more}
    return draw_images(cast(Backbone, painter), asked, images, settings=settings, **more)


def test_what_is_there_is_not_drawn_again(tmp_path: Path) -> None:
    draw(Painter(), samples(4), store(tmp_path))
    painter = Painter()
    draw(painter, samples(6), store(tmp_path))
    assert painter.batches == [["prompt 4", "prompt 5"]]


def test_a_damaged_image_is_drawn_again(tmp_path: Path) -> None:
    images = store(tmp_path)
    draw(Painter(), samples(3), images)
    images.path(samples(3)[1]).write_bytes(b"torn")
    painter = Painter()
    draw(painter, samples(3), store(tmp_path))
    assert painter.batches == [["prompt 1"]]


def test_two_items_of_one_prompt_and_seed_share_an_image(tmp_path: Path) -> None:
    twice = [Sample("a", "a", "image", "same", seed=1), Sample("b", "b", "image", "same", seed=1)]
    painter = Painter()
    draw(painter, twice, store(tmp_path))
    assert painter.batches == [["same"]]


def test_a_refused_item_is_left_out_with_its_reason_and_the_others_are_drawn(tmp_path: Path) -> None:
    images = store(tmp_path)
    refused = draw(Painter(refuses=["prompt 1"]), samples(5), images)
    assert refused == {"1": "cannot draw 'prompt 1'"}
    assert [sample.item_id for sample in images.missing(samples(5))] == ["1"]


def test_a_backbone_that_refuses_everything_is_at_fault_itself(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot draw 'prompt 0'"):
        draw(Painter(refuses=[f"prompt {i}" for i in range(5)]), samples(5), store(tmp_path))


def test_the_one_item_left_by_an_earlier_run_may_be_refused_again(tmp_path: Path) -> None:
    draw(Painter(refuses=["prompt 1"]), samples(5), store(tmp_path))
    assert draw(Painter(refuses=["prompt 1"]), samples(5), store(tmp_path)) == {"1": "cannot draw 'prompt 1'"}


def test_a_fault_of_the_program_stops_the_run_and_keeps_what_was_drawn(tmp_path: Path) -> None:
    images = store(tmp_path)
    with pytest.raises(TypeError):
        draw(Painter(refuses=["prompt 4"], error=TypeError), samples(5), images)
    assert [sample.item_id for sample in store(tmp_path).missing(samples(5))] == ["4"]


class Cramped(Painter):
    """Has memory for a few at a time."""

    def __init__(self, holds: int, error: BaseException, after: int = 0) -> None:
        super().__init__()
        self.holds, self.full, self.after = holds, error, after

    def generate(self, prompts: Sequence[str], **more: Any) -> Iterator[Image.Image]:
        for place, image in enumerate(super().generate(prompts, **more)):
            if len(prompts) > self.holds and place == self.after:
                raise self.full
            yield image

    def answer(self, images: Any, questions: Sequence[str], **more: Any) -> list[str]:
        answers = super().answer(images, questions, **more)
        if len(questions) > self.holds:
            raise self.full
        return answers


SHORTAGES = (
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 12.00 GiB. GPU 0 has a total capacity of 79.18 GiB"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 4294967296 bytes."),
    MemoryError(),
)


@pytest.mark.parametrize("error", SHORTAGES, ids=lambda error: type(error).__name__)
def test_a_batch_that_memory_does_not_hold_is_halved_for_the_rest_of_the_run(
    tmp_path: Path, error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    painter, images, size = Cramped(2, error), store(tmp_path), BatchSize(8)
    assert draw(painter, samples(11), images, batch_size=size) == {}
    assert [len(batch) for batch in painter.batches] == [8, 4, 2, 2, 2, 2, 2, 1]
    assert images.missing(samples(11)) == [] and size.value == 2
    assert [record.getMessage() for record in caplog.records] == [
        "Memory does not hold 8 responses at once; going on with 4.",
        "Memory does not hold 4 responses at once; going on with 2.",
    ]


class Hoarder(Painter):
    """Holds something while it draws and remembers how much of that was still held when it was called again."""

    def __init__(self) -> None:
        super().__init__()
        self.held, self.left = list[weakref.ref[Any]](), list[int]()

    def generate(self, prompts: Sequence[str], **more: Any) -> Iterator[Image.Image]:
        self.left.append(sum(one() is not None for one in self.held))
        hoard = torch.zeros(1)
        self.held.append(weakref.ref(hoard))
        if len(prompts) > 1:
            cycle: list[Any] = [hoard]
            cycle.append(cycle)
            raise torch.OutOfMemoryError("CUDA out of memory.")
        yield from super().generate(prompts, **more)


def test_what_a_failed_batch_held_is_free_before_the_next_is_tried(tmp_path: Path) -> None:
    painter = Hoarder()
    draw(painter, samples(4), store(tmp_path), batch_size=BatchSize(4))
    assert painter.left == [0] * 6


def test_what_a_batch_made_before_memory_ran_out_is_not_made_again(tmp_path: Path) -> None:
    counts: list[int] = []
    painter = Cramped(2, MemoryError(), after=1)
    draw(painter, samples(5), store(tmp_path), batch_size=BatchSize(4), advance=counts.append)
    assert painter.batches == [[f"prompt {i}" for i in batch] for batch in ((0, 1, 2, 3), (1, 2), (3, 4))]
    assert sum(counts) == 5


def test_questions_that_memory_does_not_hold_at_once_are_asked_in_halves(tmp_path: Path) -> None:
    asked = [Sample(str(n), "a", "answer", f"which? {n}", images=(ScenePicture(1, 1),)) for n in range(7)]
    answers = [AnswerStore(tmp_path / f"{name}.jsonl", backbone_key="key") for name in ("cramped", "roomy")]
    for painter, kept in zip((Cramped(2, MemoryError()), Painter()), answers, strict=True):
        backbone = cast(Backbone, painter)
        answer_questions(backbone, asked, kept, max_new_tokens=4, batch_size=BatchSize(6), advance=lambda count: None)
    assert [answers[0].get(sample) for sample in asked] == [answers[1].get(sample) for sample in asked]
    assert answers[0].missing(asked) == []


@pytest.mark.parametrize(
    ("error", "found"),
    list(
        zip(SHORTAGES, ("on the GPU (12.00 GiB at once)", "on the CPU (4.00 GiB at once)", "on the CPU"), strict=True)
    ),
    ids=lambda value: type(value).__name__,
)
def test_memory_that_does_not_hold_one_image_is_an_error_in_one_sentence(
    tmp_path: Path, error: BaseException, found: str
) -> None:
    with pytest.raises(MemoryShortageError) as caught:
        draw(Cramped(0, error), samples(5), store(tmp_path), batch_size=BatchSize(4))
    assert str(caught.value) == (
        f"Drawing one image at a time needs more memory than there is {found}: end other programs there, or take "
        "another device with --device."
    )


@pytest.mark.parametrize("error", [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), OSError("no space")])
def test_other_faults_halve_nothing(tmp_path: Path, error: Exception) -> None:
    size = BatchSize(4)
    with pytest.raises(type(error), match=str(error)):
        draw(Cramped(0, error), samples(5), store(tmp_path), batch_size=size)
    assert size.value == 4


@given(count=st.integers(0, 40), num_ranks=st.integers(1, 7))
def test_ranks_take_every_item_once(count: int, num_ranks: int) -> None:
    parts = [list(Shard(rank, num_ranks).of(range(count))) for rank in range(num_ranks)]
    assert sorted(item for part in parts for item in part) == list(range(count))


def test_progress_adds_up_to_the_items_whoever_made_them(tmp_path: Path) -> None:
    counts: list[int] = []
    draw(Painter(), samples(2), store(tmp_path))
    draw(Painter(), samples(5), store(tmp_path), advance=counts.append)
    assert sum(counts) == 5


def test_questions_are_answered_once_with_their_images(tmp_path: Path) -> None:
    Image.new("RGB", (5, 4)).save(tmp_path / "a.png")
    asked = [Sample(str(i), "a", "answer", f"question {i}", images=(tmp_path / "a.png",)) for i in range(3)]
    for expected in ([["question 0", "question 1"], ["question 2"]], []):
        painter, answers = Painter(), AnswerStore(tmp_path / "answers.jsonl", backbone_key="key")
        refused = answer_questions(
            cast(Backbone, painter),
            asked,
            answers,
            max_new_tokens=4,
            batch_size=BatchSize(2),
            advance=lambda count: None,
        )
        assert painter.batches == expected and refused == {}
    assert answers.get(asked[2]) == "question 2 (5, 4)"


def test_a_question_about_an_unreadable_image_is_left_out_alone(tmp_path: Path) -> None:
    Image.new("RGB", (5, 4)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no image")
    asked = [Sample(name, name, "answer", "what?", images=(tmp_path / f"{name}.png",)) for name in ("a", "b")]
    answers = AnswerStore(tmp_path / "answers.jsonl", backbone_key="key")
    refused = answer_questions(
        cast(Backbone, Painter()), asked, answers, max_new_tokens=4, batch_size=BatchSize(2), advance=lambda count: None
    )
    assert list(refused) == ["b"] and "b.png" in refused["b"]
    assert answers.get(asked[0]) == "what? (5, 4)"


def test_questions_of_like_length_share_a_batch_and_the_longest_come_first(tmp_path: Path) -> None:
    picture = ScenePicture(1, 1)
    asked = [
        Sample(str(n), "a", "answer", "why? " * length, images=(picture,)) for n, length in enumerate((1, 9, 2, 8))
    ]
    painter, answers = Painter(), AnswerStore(tmp_path / "answers.jsonl", backbone_key="key")
    answer_questions(
        cast(Backbone, painter), asked, answers, max_new_tokens=4, batch_size=BatchSize(2), advance=lambda count: None
    )
    assert [[len(text) // 5 for text in batch] for batch in painter.batches] == [[9, 8], [2, 1]]
    assert [answers.get(sample) for sample in asked] == [f"{sample.prompt} (96, 96)" for sample in asked]


class Weigher(Painter):
    """Weighs choices by their length, and answers what has none."""

    def choice_logprobs(
        self, images: Any, questions: Sequence[str], choices: Sequence[Sequence[str]]
    ) -> list[list[float]]:
        return [[-float(len(choice)) for choice in row] for row in choices]


def test_questions_with_choices_are_weighed_and_others_answered_in_one_run(tmp_path: Path) -> None:
    picture = ScenePicture(1, 1)
    asked = [
        Sample(str(n), "a", "answer", f"which? {n}", images=(picture,), choices=("Yes", "No") if n % 2 else ())
        for n in range(4)
    ]
    answers = AnswerStore(tmp_path / "answers.jsonl", backbone_key="key")
    answer_questions(
        cast(Backbone, Weigher()), asked, answers, max_new_tokens=4, batch_size=BatchSize(3), advance=lambda count: None
    )
    weights = [-3.0, -2.0]
    expected = ["which? 0 (96, 96)", weights, "which? 2 (96, 96)", weights]
    assert [answers.get(sample) for sample in asked] == expected


def test_processes_that_share_a_file_answer_each_question_once_between_them(tmp_path: Path) -> None:
    asked = [Sample(str(n), "a", "answer", f"which? {n}", images=(ScenePicture(1, 1),)) for n in range(11)]
    batches = []
    for rank in range(3):
        painter, answers = Painter(), AnswerStore(tmp_path / "answers.jsonl", backbone_key="key")
        backbone = cast(Backbone, painter)
        answer_questions(
            backbone,
            asked,
            answers,
            max_new_tokens=4,
            batch_size=BatchSize(2),
            advance=lambda n: None,
            shard=Shard(rank, 3),
        )
        batches += painter.batches
    assert sorted(text for batch in batches for text in batch) == sorted(sample.prompt for sample in asked)
    assert AnswerStore(tmp_path / "answers.jsonl", backbone_key="key").missing(asked) == []


def test_an_answer_is_of_its_pictures_and_its_choices(tmp_path: Path) -> None:
    answers = AnswerStore(tmp_path / "answers.jsonl", backbone_key="key")
    asked = Sample("1", "a", "answer", "which?", images=(ScenePicture(1, 1),))
    answers.put(asked, "yes")
    assert answers.get(asked) == "yes"
    for other in (replace(asked, images=(ScenePicture(1, 2),)), replace(asked, choices=("Yes", "No"))):
        assert answers.missing([other]) == [other]


@given(num_prompts=st.integers(1, 60), limit=st.integers(1, 80))
def test_a_limit_keeps_whole_prompts_spread_over_the_set(num_prompts: int, limit: int) -> None:
    asked = [Sample(f"{p}/{k}", f"{p}", "image", "x") for p in range(num_prompts) for k in range(2)]
    kept = subsample(asked, limit)
    clusters = sorted({int(sample.cluster_id) for sample in kept})
    assert len(clusters) == min(limit, num_prompts) and len(kept) == 2 * len(clusters)
    gaps = [b - a for a, b in zip([*clusters], clusters[1:], strict=False)]
    assert not gaps or max(gaps) - min(gaps) <= 1
