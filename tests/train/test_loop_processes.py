import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import toy_training
from safetensors.torch import load_file


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_two_processes_train_as_one_with_a_batch_twice_as_large(tmp_path: Path) -> None:
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    # What a launcher's environment says about accumulation must not count twice.
    shared |= {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "2"}
    processes = [
        subprocess.Popen(
            [sys.executable, toy_training.__file__, str(tmp_path / "two")],
            env=os.environ | shared | {"RANK": rank, "LOCAL_RANK": rank},
        )
        for rank in ("0", "1")
    ]
    assert [process.wait(120) for process in processes] == [0, 0]

    recipe = toy_training.RECIPE
    one = toy_training.train_toy(
        tmp_path / "one", backbone=toy_training.PlainBackbone(), batch_size=2 * recipe.batch_size, i2t_batch_size=4
    )
    expected = load_file(one.checkpoint / "model.safetensors")
    found = load_file(tmp_path / "two/checkpoints" / one.checkpoint.name / "model.safetensors")
    start = toy_training.PlainBackbone().state_dict()
    assert not torch.allclose(expected["body.0.weight"], start["body.0.weight"], atol=1e-2)
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, atol=1e-6, rtol=1e-5)
    # Adam hides the scale of a gradient; its norm does not.
    metrics = [[json.loads(line) for line in (tmp_path / name / "metrics.jsonl").open()] for name in ("one", "two")]
    for ours, theirs in zip(*metrics, strict=True):
        for name in ("step", "loss", "t2i_loss", "i2t_loss", "grad_norm", "learning_rate", "num_samples"):
            assert theirs[name] == pytest.approx(ours[name], rel=1e-4), name
