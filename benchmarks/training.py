"""Measure what the training loop costs beside the work it organises, in one run.

Usage: `python benchmarks/training.py [cpu|cuda] [BATCH_SIZE]`. A small Harmon with random weights trains with SFT on
the embedded world: once through the loop, once as its bare objective, gradient and update on batches drawn
beforehand. Prints updates per second of both (of processor time on a CPU), their ratio, and what a checkpoint takes.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import torch

from segros_train.backbone import Backbone
from segros_train.backbones.harmon.adapter import Harmon
from segros_train.backbones.harmon.config import DiffusionConfig, HarmonConfig, LanguageConfig, MarConfig, VaeConfig
from segros_train.backbones.harmon.model import HarmonModel, initialise
from segros_train.backbones.harmon.prompts import HarmonTokenizer
from segros_train.data.batches import Share, generation_batches, instruction_batches
from segros_train.data.shapes.captions import corpus
from segros_train.data.shapes.sets import GenerationSet, InstructionSet
from segros_train.data.shapes.tokenizer import build_tokenizer
from segros_train.data.shapes.world import IMAGE_PX
from segros_train.methods.sft import SFT
from segros_train.training.checkpoint import Progress, save_checkpoint, training_state
from segros_train.training.loop import StepReport, train
from segros_train.training.objective import Objective
from segros_train.training.optim import build_optimizer
from segros_train.types import BackboneCard, GenerationSettings, Recipe

WARM_UP, MEASURED = 3, 12
CONFIG = HarmonConfig(
    llm=LanguageConfig(
        hidden_size=128, intermediate_size=384, num_layers=4, num_heads=4, num_kv_heads=2, vocab_size=512
    ),
    mar=MarConfig(
        encoder_width=128,
        encoder_depth=3,
        encoder_heads=4,
        decoder_width=128,
        decoder_depth=3,
        decoder_heads=4,
        diffusion=DiffusionConfig(depth=3, width=192),
        base_grid=(6, 6),
        buffer_size=8,
        num_classes=1,
    ),
    vae=VaeConfig(ch=16, num_res_blocks=1, num_groups=8),
)


def small_harmon(device: str) -> Backbone:
    """Return a Harmon of about two million weights."""
    model = HarmonModel(CONFIG)
    initialise(model, torch.Generator().manual_seed(0))
    card = BackboneCard(
        "harmon-bench", "harmon", "Harmon", CONFIG, "shapes", IMAGE_PX, GenerationSettings(1), recipe="", data="shapes"
    )
    return Harmon(card, model.to(device), HarmonTokenizer(build_tokenizer(corpus(200))))


def clock(backbone: Backbone) -> float:
    """Return seconds: of this process on a CPU, of the wall once a GPU has done its work."""
    if not next(backbone.parameters()).is_cuda:
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def loop_rate(backbone: Backbone, recipe: Recipe, directory: Path) -> float:
    """Return updates per second of the loop, data, metrics and all."""
    times: list[float] = []

    def note(report: StepReport) -> None:
        times.append(clock(backbone))

    train(
        backbone,
        SFT(),
        recipe=recipe,
        generation=GenerationSet(),
        instruction=InstructionSet(),
        directory=directory,
        seed=0,
        report=note,
    )
    return MEASURED / (times[-1] - times[WARM_UP - 1])


def bare_rate(backbone: Backbone, recipe: Recipe) -> float:
    """Return updates per second of objective, gradient and update alone."""
    arguments = {"batch_size": recipe.batch_size, "seed": 0, "share": Share()}
    images = generation_batches(GenerationSet(), transform=backbone.image_transform("generation"), **arguments)[0].batch
    dialogues = instruction_batches(InstructionSet(), transform=backbone.image_transform("understanding"), **arguments)[
        0
    ].batch
    objective, optimizer = Objective(backbone, SFT(), recipe, seed=0).train(), build_optimizer(backbone, recipe)
    for step in range(WARM_UP + MEASURED):
        if step == WARM_UP:
            began = clock(backbone)
        for batch in (images, dialogues):
            objective(batch, step).backward()
        torch.nn.utils.clip_grad_norm_(objective.parameters(), recipe.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
    return MEASURED / (clock(backbone) - began)


def checkpoint_seconds(backbone: Backbone, directory: Path) -> float:
    """Return the time of one checkpoint, written to the disk."""
    began = time.perf_counter()
    save_checkpoint(
        directory,
        Progress(step=1),
        identity={},
        write_backbone=backbone.save_pretrained,
        state=training_state(backbone, build_optimizer(backbone, Recipe(optimizer_steps=1, batch_size=1))),
    )
    return time.perf_counter() - began


def main() -> None:
    """Print the rates and their ratio."""
    device, batch_size = (sys.argv[1:] + ["cpu", "32"][len(sys.argv) - 1 :])[:2]
    recipe = Recipe(optimizer_steps=WARM_UP + MEASURED, batch_size=int(batch_size))
    backbone = small_harmon(device)
    with tempfile.TemporaryDirectory() as folder:
        bare = bare_rate(backbone, recipe)
        whole = loop_rate(backbone, recipe, Path(folder))
        seconds = checkpoint_seconds(backbone, Path(folder) / "other")
    sys.stdout.write(
        f"{device}: bare {bare:.2f} updates/s; loop {whole:.2f}/s; ratio {whole / bare:.2f}; "
        f"checkpoint {seconds:.2f} s = {seconds * whole:.1f} updates\n"
    )


if __name__ == "__main__":
    main()
