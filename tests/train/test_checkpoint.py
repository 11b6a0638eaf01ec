import json
import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from toy_training import RECIPE, ToyBackbone

from segros_train.errors import PrerequisiteError
from segros_train.training.checkpoint import (
    Checkpoint,
    Progress,
    load_training_state,
    newest_checkpoint,
    save_checkpoint,
    training_state,
)
from segros_train.training.optim import build_optimizer

IDENTITY = {"seed": 0}


def save(folder: Path, step: int, backbone: ToyBackbone | None = None, *, finished: bool = False) -> Checkpoint:
    backbone = backbone or ToyBackbone()
    return save_checkpoint(
        folder,
        Progress(step=step, num_samples=7, seconds=1.5, unreadable=("generation:3",), finished=finished),
        identity=IDENTITY,
        write_backbone=backbone.save_pretrained,
        state=training_state(backbone, build_optimizer(backbone, RECIPE)),
    )


def test_a_checkpoint_reads_back_as_it_was_written(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path) is None
    assert save(tmp_path, 3) == newest_checkpoint(tmp_path)


def test_the_newest_two_checkpoints_are_kept(tmp_path: Path) -> None:
    for step in (5, 10, 999_999, 1_000_000):
        save(tmp_path, step)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-1000000", "step-999999"]
    assert newest_checkpoint(tmp_path).progress.step == 1_000_000


def test_a_finished_run_keeps_its_last_checkpoint_without_training_state(tmp_path: Path) -> None:
    save(tmp_path, 5)
    last = save(tmp_path, 10, finished=True)
    assert list(tmp_path.iterdir()) == [last.path]
    assert sorted(os.listdir(last.path)) == ["checkpoint.json", "config.json", "model.safetensors"]


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("training.safetensors", truncate),
        ("training.safetensors", flip_a_bit),
        ("training.safetensors", Path.unlink),
        ("model.safetensors", flip_a_bit),
        ("checkpoint.json", truncate),
        ("checkpoint.json", Path.unlink),
    ],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, damage: Callable[[Path], None]
) -> None:
    save(tmp_path, 5)
    damage(save(tmp_path, 10).path / name)
    with caplog.at_level(logging.WARNING):
        assert newest_checkpoint(tmp_path).progress.step == 5
    assert "step-000010 is skipped" in caplog.text and name in caplog.text


def test_a_checkpoint_of_another_format_is_named_and_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    manifest = save(tmp_path, 5).path / "checkpoint.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format": 99}))
    assert newest_checkpoint(tmp_path) is None
    assert "format is 99" in caplog.text


def test_a_crash_while_writing_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    save(tmp_path, 5)

    def die(directory: Path) -> None:
        (directory / "model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path, Progress(step=10), identity=IDENTITY, write_backbone=die, state={})
    assert newest_checkpoint(tmp_path).progress.step == 5
    assert [path.name for path in tmp_path.iterdir()] == ["step-000005"]


def test_a_damaged_checkpoint_of_the_same_step_is_replaced(tmp_path: Path) -> None:
    truncate(save(tmp_path, 5).path / "model.safetensors")
    save(tmp_path, 5)
    assert newest_checkpoint(tmp_path).progress.step == 5


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(PrerequisiteError, match=r"Cannot write checkpoint .*file/checkpoints/step-000005"):
        save(tmp_path / "file" / "checkpoints", 5)


def test_weights_buffers_and_moments_return_bit_by_bit(tmp_path: Path) -> None:
    backbone = ToyBackbone(seed=1)
    optimizer = build_optimizer(backbone, RECIPE)
    backbone.body[0].weight.grad = torch.randn(8, 8)
    optimizer.step()
    backbone.mean.fill_(0.1)
    saved = training_state(backbone, optimizer)
    checkpoint = save_checkpoint(
        tmp_path, Progress(step=1), identity=IDENTITY, write_backbone=backbone.save_pretrained, state=saved
    )

    other = ToyBackbone(seed=2)
    fresh = build_optimizer(other, RECIPE)
    load_training_state(checkpoint, other, fresh)
    loaded = training_state(other, fresh)
    assert "optimizer/body.0.weight/exp_avg_sq" in saved and "buffers/mean" in saved
    assert loaded.keys() == saved.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in saved.items())


def test_a_checkpoint_of_another_backbone_is_refused_with_the_tensors_that_differ(tmp_path: Path) -> None:
    checkpoint = save(tmp_path, 5)
    other = ToyBackbone()
    other.reader = torch.nn.Linear(3, 1)
    with pytest.raises(PrerequisiteError, match=r"1 tensors differ, first \['weights/reader.weight'\]"):
        load_training_state(checkpoint, other, build_optimizer(other, RECIPE))
