import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from toy_training import PlainBackbone, ToyBackbone, ToyDialogues, ToyImages, train_toy

from segros_train.data.reading import DataError
from segros_train.errors import PrerequisiteError
from segros_train.training.loop import NonFiniteLossError, StepReport, TrainOutcome
from segros_train.types import GenerationBatch, Supervision


def weights(outcome: TrainOutcome) -> dict[str, torch.Tensor]:
    return load_file(outcome.checkpoint / "model.safetensors")


def assert_same_weights(first: TrainOutcome, second: TrainOutcome) -> None:
    left, right = weights(first), weights(second)
    assert left.keys() == right.keys()
    assert [name for name in left if not torch.equal(left[name], right[name])] == []


def lines(directory: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def test_training_lowers_the_loss(tmp_path: Path) -> None:
    train_toy(tmp_path, optimizer_steps=60)
    losses = [line["loss"] for line in lines(tmp_path)]
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])


@pytest.mark.parametrize("stops", [(1,), (5, 11), (3, 4, 7)])
def test_a_run_in_pieces_ends_with_the_weights_of_a_run_in_one(tmp_path: Path, stops: tuple[int, ...]) -> None:
    whole = train_toy(tmp_path / "whole")
    for stop in stops:
        piece = train_toy(tmp_path / "pieces", stop_after=stop)
        assert (piece.step, piece.finished) == (stop, False)
        torch.randn(3)
    last = train_toy(tmp_path / "pieces")
    assert last.finished and last.num_samples == whole.num_samples == 12 * 2 * (3 + 2)
    assert_same_weights(whole, last)
    untimed = [
        [{key: value for key, value in line.items() if key != "seconds"} for line in lines(tmp_path / name)]
        for name in ("whole", "pieces")
    ]
    assert untimed[0] == untimed[1]


def test_dropout_and_draws_change_with_the_seed_and_with_nothing_else(tmp_path: Path) -> None:
    first = train_toy(tmp_path / "a")
    torch.manual_seed(123)
    assert_same_weights(first, train_toy(tmp_path / "b"))
    other = weights(train_toy(tmp_path / "c", seed=1))
    assert not torch.equal(other["body.0.weight"], weights(first)["body.0.weight"])


def test_training_leaves_the_callers_random_state_alone(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    train_toy(tmp_path, optimizer_steps=2)
    assert torch.equal(torch.get_rng_state(), before)


def test_workers_change_nothing(tmp_path: Path) -> None:
    assert_same_weights(train_toy(tmp_path / "a"), train_toy(tmp_path / "b", num_workers=2))


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    first = train_toy(tmp_path)
    backbone = ToyBackbone()
    again = train_toy(tmp_path, backbone=backbone)
    assert again == first
    assert backbone.seen == []


def test_accumulation_equals_one_big_batch(tmp_path: Path) -> None:
    fields = {"optimizer_steps": 5, "clip_norm": 0.05}
    big = train_toy(
        tmp_path / "big", backbone=PlainBackbone(), accumulation=1, batch_size=6, i2t_batch_size=6, **fields
    )
    small = train_toy(
        tmp_path / "small", backbone=PlainBackbone(), accumulation=3, batch_size=2, i2t_batch_size=2, **fields
    )
    for name, weight in weights(big).items():
        torch.testing.assert_close(weights(small)[name], weight, atol=1e-6, rtol=1e-5)
    assert lines(tmp_path / "small")[-1]["loss"] == pytest.approx(lines(tmp_path / "big")[-1]["loss"], rel=1e-5)


def test_frozen_and_unused_parameters_are_unchanged(tmp_path: Path) -> None:
    start, end = ToyBackbone().state_dict(), weights(train_toy(tmp_path))
    unchanged = {name for name in end if torch.equal(start[name], end[name])}
    assert unchanged == {"encoder.weight", "encoder.bias", "unused"}


def test_master_weights_stay_float32_under_bf16_and_keep_steps_bf16_would_lose(tmp_path: Path) -> None:
    backbone = ToyBackbone().to(torch.bfloat16)
    backbone.encoder.float()
    backbone.mean = backbone.mean.float()
    start = backbone.body[0].weight.detach().clone()
    train_toy(tmp_path, backbone=backbone, precision="bf16", learning_rate=1e-6, weight_decay=0.0)
    end = backbone.body[0].weight.detach()
    assert end.dtype == torch.float32
    assert not torch.equal(end, start.float())
    assert torch.equal(end.to(torch.bfloat16), start)


@pytest.mark.parametrize(("precision", "expected"), [("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_precision_is_that_of_the_matrix_products(tmp_path: Path, precision: str, expected: torch.dtype) -> None:
    backbone = ToyBackbone()
    seen = []
    backbone.body[0].register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    train_toy(tmp_path, backbone=backbone, precision=precision, optimizer_steps=1)
    assert set(seen) == {expected}


def test_a_cpu_trains_in_float32_unless_told_otherwise(tmp_path: Path) -> None:
    assert_same_weights(
        train_toy(tmp_path / "a", precision="auto"),
        train_toy(tmp_path / "b", precision="fp32"),
    )


def test_the_recipes_text_dropout_is_realised(tmp_path: Path) -> None:
    backbone = ToyBackbone()
    backbone.configure(replace(backbone.conditioning, attention="paper"))
    train_toy(tmp_path, backbone=backbone, text_dropout=0.25, optimizer_steps=1)
    assert (backbone.conditioning.text_dropout, backbone.conditioning.attention) == (0.25, "paper")


def test_no_weight_takes_no_image_to_text_loss(tmp_path: Path) -> None:
    outcome = train_toy(tmp_path, instruction=None, i2t_weight=0.0)
    assert torch.equal(weights(outcome)["reader.weight"], ToyBackbone().reader.weight)
    assert {line["i2t_loss"] for line in lines(tmp_path)} == {None}


def test_the_joint_loss_is_weighted(tmp_path: Path) -> None:
    train_toy(tmp_path, i2t_weight=0.25, optimizer_steps=3)
    for line in lines(tmp_path):
        assert line["loss"] == pytest.approx(line["t2i_loss"] + 0.25 * line["i2t_loss"], rel=1e-5)


def test_reports_say_pace_and_time_left(tmp_path: Path) -> None:
    reports: list[StepReport] = []
    train_toy(tmp_path, report=reports.append, stop_after=4)
    train_toy(tmp_path, report=reports.append)
    assert [report.step for report in reports] == list(range(1, 13))
    assert {report.num_steps for report in reports} == {12}
    for report in reports:
        assert report.seconds_left == pytest.approx((12 - report.step) / report.steps_per_second)
        assert report.samples_per_second == pytest.approx(10 * report.steps_per_second)
    assert all(first.seconds < second.seconds for first, second in zip(reports, reports[1:], strict=False))


def test_metrics_lost_with_a_crash_are_written_once(tmp_path: Path) -> None:
    train_toy(tmp_path, stop_after=5)
    with (tmp_path / "metrics.jsonl").open("a") as stream:
        stream.write(json.dumps({"step": 6, "loss": -1.0}) + '\n{"step": 7, "lo')
    train_toy(tmp_path)
    assert [line["step"] for line in lines(tmp_path)] == list(range(1, 13))
    assert all(line["loss"] > 0 for line in lines(tmp_path))


def test_checkpoints_come_by_steps_and_by_time(tmp_path: Path) -> None:
    train_toy(tmp_path / "steps", stop_after=10, checkpoint_steps=4)
    train_toy(tmp_path / "time", stop_after=10, checkpoint_seconds=0.0)
    names = [sorted(path.name for path in (tmp_path / kind / "checkpoints").iterdir()) for kind in ("steps", "time")]
    assert names == [["step-000008", "step-000010"], ["step-000009", "step-000010"]]


def test_a_loss_that_is_not_a_number_stops_with_step_items_and_last_good_checkpoint(tmp_path: Path) -> None:
    scout = ToyBackbone()
    train_toy(tmp_path / "scout", backbone=scout)
    poison = scout.seen[2 * 8 + 1][0]
    first = next(number for number, ids in enumerate(scout.seen) if poison in ids) // 2 + 1
    backbone = ToyBackbone()
    backbone.poison = poison
    with pytest.raises(NonFiniteLossError) as caught:
        train_toy(tmp_path / "run", backbone=backbone, checkpoint_steps=1)
    error = caught.value
    assert error.step == first
    assert poison in error.item_ids and len(error.item_ids) == 3 + 2
    assert error.checkpoint == (tmp_path / f"run/checkpoints/step-{first - 1:06d}" if first > 1 else None)
    for word in (f"update {first} ", poison, "loss nan", str(error.checkpoint or "none yet")):
        assert word in str(error)


class ExplodingBackbone(PlainBackbone):
    """A backbone with a finite loss whose gradient is not."""

    def t2i_loss(self, batch: GenerationBatch, supervision: Supervision, rng: torch.Generator) -> torch.Tensor:
        return torch.sqrt(self.body[0].weight.sum() * 0.0)


def test_an_infinite_gradient_stops_before_a_checkpoint_is_written(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteLossError, match="gradient norm nan") as caught:
        train_toy(tmp_path, backbone=ExplodingBackbone(), checkpoint_steps=1)
    assert (caught.value.step, len(caught.value.item_ids)) == (1, 2 * (3 + 2))
    assert not (tmp_path / "checkpoints").exists()


def test_an_unreadable_item_stops_and_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"item 'image-3': torn. 1 unreadable items, 0 allowed"):
        train_toy(tmp_path, generation=ToyImages(broken=frozenset({3})))


def test_allowed_unreadable_items_are_left_out_and_counted_once_even_over_a_restart(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken = {"generation": ToyImages(broken=frozenset({3, 5})), "instruction": ToyDialogues(), "max_unreadable": 2}
    backbone = ToyBackbone()
    with caplog.at_level(logging.WARNING):
        train_toy(tmp_path, backbone=backbone, stop_after=6, **broken)
        train_toy(tmp_path, backbone=backbone, **broken)
    assert caplog.text.count("left out") == 2
    seen = [item for ids in backbone.seen for item in ids]
    assert set(seen) == {f"image-{index}" for index in range(20)} - {"image-3", "image-5"}
    assert all(1 <= len(ids) <= 3 for ids in backbone.seen)


def test_a_batch_without_one_readable_item_stops(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Not one item of a batch can be read"):
        train_toy(tmp_path, generation=ToyImages(broken=frozenset(range(20))), max_unreadable=20)


def test_a_folder_of_another_run_is_refused_with_what_differs(tmp_path: Path) -> None:
    train_toy(tmp_path, stop_after=2)
    with pytest.raises(PrerequisiteError, match=r"belongs to another run: seed was 0, now 4"):
        train_toy(tmp_path, seed=4)


def test_a_supervision_out_of_range_is_refused_at_the_first_step(tmp_path: Path) -> None:
    class Blind:
        needs_embeddings = False

        def supervise(self, seen: object, masking_ratio: object, rng: object) -> Supervision:
            return Supervision(caption=True, masked=torch.ones(3, 5, dtype=torch.bool))

    with pytest.raises(ValueError, match="masked covers 5 cells, the latent has 16"):
        train_toy(tmp_path, method=Blind())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"instruction": None}, "no instruction data"),
        ({"optimizer_steps": 0}, "optimizer_steps must be at least 1"),
        ({"stop_after": 0}, "stop_after"),
        ({"generation": ToyImages(size=0)}, "generation data set is empty"),
    ],
)
def test_what_does_not_fit_together_is_refused(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train_toy(tmp_path, **changes)
