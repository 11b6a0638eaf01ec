"""A real process that trains the real Harmon architecture at micro dims is killed, and goes on."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from segros_train.backbone import Conditioning
from segros_train.backbones.harmon.adapter import Harmon
from segros_train.backbones.harmon.config import DiffusionConfig, HarmonConfig, LanguageConfig, MarConfig, VaeConfig
from segros_train.backbones.harmon.model import HarmonModel, initialise
from segros_train.backbones.harmon.prompts import HarmonTokenizer
from segros_train.data.shapes.captions import corpus
from segros_train.data.shapes.sets import GenerationSet, InstructionSet
from segros_train.data.shapes.tokenizer import build_tokenizer
from segros_train.data.shapes.world import IMAGE_PX
from segros_train.methods.segros import SeGroS
from segros_train.training.loop import train
from segros_train.types import BackboneCard, GenerationSettings, Recipe

NUM_STEPS = 24
NUM_KILLS = 3
RECIPE = Recipe(
    optimizer_steps=NUM_STEPS, batch_size=2, accumulation=2, learning_rate=1e-2, warmup_steps=4, i2t_batch_size=2
)
CONFIG = HarmonConfig(
    llm=LanguageConfig(hidden_size=16, intermediate_size=32, num_layers=2, num_heads=2, num_kv_heads=1, vocab_size=512),
    mar=MarConfig(
        encoder_width=16,
        encoder_depth=1,
        encoder_heads=2,
        decoder_width=16,
        decoder_depth=1,
        decoder_heads=2,
        diffusion=DiffusionConfig(depth=1, width=16),
        base_grid=(6, 6),
        buffer_size=4,
        num_classes=2,
    ),
    vae=VaeConfig(ch=4, num_res_blocks=1, num_groups=4),
)
CARD = BackboneCard(
    "harmon-micro", "harmon", "Harmon", CONFIG, "shapes", IMAGE_PX, GenerationSettings(2), recipe="", data="shapes"
)


def train_micro_harmon(directory: Path) -> None:
    """Train from weights that depend on nothing, on one thread; a checkpoint every second update."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = HarmonModel(CONFIG)
    initialise(model, torch.Generator().manual_seed(0))
    tokenizer = HarmonTokenizer(build_tokenizer(corpus(50)))
    backbone = Harmon(CARD, model, tokenizer, conditioning=Conditioning(attention="paper"))
    train(
        backbone,
        SeGroS(),
        recipe=RECIPE,
        generation=GenerationSet(size=40),
        instruction=InstructionSet(size=40),
        directory=directory,
        seed=0,
        checkpoint_steps=2,
    )


def start(directory: Path) -> multiprocessing.process.BaseProcess:
    """Train in a process of its own; importing is done once, in the server that processes are forked from."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["segros_train.training.loop", "segros_train.backbones.harmon.adapter"])
    process = context.Process(target=train_micro_harmon, args=(directory,), daemon=True)
    process.start()
    return process


def steps_done(directory: Path) -> int:
    metrics = directory / "metrics.jsonl"
    return metrics.read_bytes().count(b"\n") if metrics.exists() else 0


def finish(directory: Path) -> dict[str, torch.Tensor]:
    process = start(directory)
    process.join(60)
    assert process.exitcode == 0
    return load_file(directory / "checkpoints" / f"step-{NUM_STEPS:06d}" / "model.safetensors")


def kill_after(directory: Path, num_steps: int, pause_seconds: float) -> None:
    """Kill the training a moment after it has made `num_steps` updates."""
    process = start(directory)
    deadline = time.monotonic() + 60
    while steps_done(directory) < num_steps and process.is_alive():
        assert time.monotonic() < deadline, "training does not come on"
        time.sleep(0.001)
    time.sleep(pause_seconds)
    os.kill(process.pid, signal.SIGKILL)
    process.join(10)
    assert process.exitcode == -signal.SIGKILL


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs POSIX signals")
def test_training_killed_at_random_moments_ends_with_the_weights_of_one_never_killed(tmp_path: Path) -> None:
    whole = finish(tmp_path / "whole")
    chance = random.Random(seed := int.from_bytes(os.urandom(4), "big"))
    moments = sorted(chance.sample(range(1, NUM_STEPS - 4), NUM_KILLS))
    for moment in moments:
        kill_after(tmp_path / "killed", moment, chance.uniform(0, 0.03))
    pieces = finish(tmp_path / "killed")
    assert pieces.keys() == whole.keys()
    differing = [name for name in whole if not torch.equal(whole[name], pieces[name])]
    assert differing == [], f"killed after {moments}, seed {seed}"
    steps = [json.loads(line)["step"] for line in (tmp_path / "killed/metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, NUM_STEPS + 1))
    assert os.listdir(tmp_path / "killed/checkpoints") == [f"step-{NUM_STEPS:06d}"]
