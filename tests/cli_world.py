"""A world for tests of the command line: a real Harmon of a few thousand weights, declared and ready to run.

Its declarations stand in the place of the project's own, which are slower to run.

Its weights are random, in the published form, below a `$SEGROS_HOME` of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

BACKBONES = """
from segros_train.backbones.harmon.config import DiffusionConfig, HarmonConfig, LanguageConfig, MarConfig, VaeConfig
from segros_train.types import BackboneCard, GenerationSettings, WeightFile

micro = BackboneCard(
    name="micro",
    family="harmon",
    title="Micro",
    config=HarmonConfig(
        llm=LanguageConfig(
            hidden_size=16, intermediate_size=32, num_layers=1, num_heads=2, num_kv_heads=1, vocab_size=512
        ),
        mar=MarConfig(
            encoder_width=16,
            encoder_depth=1,
            encoder_heads=2,
            decoder_width=16,
            decoder_depth=1,
            decoder_heads=2,
            diffusion=DiffusionConfig(depth=1, width=16, num_sampling_steps=2),
            base_grid=(6, 6),
            buffer_size=4,
            num_classes=2,
        ),
        vae=VaeConfig(ch=4, num_res_blocks=1, num_groups=4),
    ),
    world="shapes",
    image_size_px=96,
    settings=GenerationSettings(num_steps=2, batch_size=8),
    recipe="micro",
    data="shapes",
    weights=(WeightFile(role="model", repo="nobody/micro", filename="model.pth"),
             WeightFile(role="tokenizer", repo="nobody/micro", filename="tokenizer.json")),
)
"""
DATA = """
from segros_train.types import DataCard

shapes = DataCard(name="shapes", world="shapes", generation="shapes", instruction="shapes")
photos = DataCard(name="photos", world="photo", generation="folder:photos")
"""
RECIPES = """
from segros_train.types import Recipe

RECIPES = {"micro": Recipe(optimizer_steps=2, batch_size=2, warmup_steps=1)}
"""
METHODS = """
from segros_train.methods.segros import SeGroS
from segros_train.methods.sft import SFT
from segros_train.method import TrainTask

none = TrainTask(name="none", title="w/o SFT", method=None)
sft = TrainTask(name="sft", title="SFT", method=SFT())
segros = TrainTask(name="segros", title="Ours", method=SeGroS(), attention="paper")
"""
ABLATIONS = """
from dataclasses import replace

from .methods import segros

no_noise = replace(segros, name="segros-noise-0", title="Ours, no noise")
"""
EVALUATORS = """
from segros_eval.benchmarks.base import EvalTask
from segros_eval.benchmarks.geneval.benchmark import GenEval

geneval = EvalTask(
    name="geneval",
    title="GenEval",
    evaluator=GenEval(images_per_prompt=2, shapes_prompts_per_tag=2),
    worlds=("photo", "shapes"),
    data="geneval",
)
photos_only = EvalTask(
    name="photos-only", title="Photos", evaluator=GenEval(), worlds=("photo",), data="geneval"
)
"""
FILES = {
    "backbones.py": BACKBONES,
    "data.py": DATA,
    "recipes.py": RECIPES,
    "train/methods.py": METHODS,
    "train/ablations.py": ABLATIONS,
    "eval/geneval.py": EVALUATORS,
}
NUM_IMAGES = 6 * 2 * 2


def declare(folder: Path) -> Path:
    """Write the declarations below `folder` and return their folder."""
    tasks = folder / "tasks"
    for name, text in FILES.items():
        path = tasks / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.lstrip("\n"), encoding="utf-8")
    return tasks


@dataclass(frozen=True)
class World:
    """A working directory with declarations and weights."""

    folder: Path

    @property
    def weights(self) -> Path:
        """Folder of the published files."""
        return self.folder / "home" / "weights" / "micro"

    def segros(self, *arguments: str, columns: int = 100, num_ranks: int = 1) -> subprocess.CompletedProcess[str]:
        """Run the real command in a process of its own, or in several that torchrun starts."""
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_ranks}"]
        return subprocess.run(
            [sys.executable, *(launcher if num_ranks > 1 else ()), "command.py", *arguments],
            cwd=self.folder,
            env=self.environment(columns),
            capture_output=True,
            text=True,
            check=False,
        )

    def enter(self, patch: pytest.MonkeyPatch) -> None:
        """Let the command in this process find the world."""
        patch.chdir(self.folder)
        patch.setattr("segros_eval.pipeline.catalog.find_tasks", lambda: self.folder / "tasks")
        for name, value in (("SEGROS_HOME", str(self.folder / "home")), ("COLUMNS", "100"), ("NO_COLOR", "1")):
            patch.setenv(name, value)

    def environment(self, columns: int = 100) -> dict[str, str]:
        """Return the environment of the command."""
        own = {"SEGROS_HOME": str(self.folder / "home"), "COLUMNS": str(columns), "OMP_NUM_THREADS": "1"}
        return {**os.environ, **own, "NO_COLOR": "1", "HF_HUB_OFFLINE": "1"}


COMMAND = """
from pathlib import Path

from segros_eval.cli.app import main
from segros_eval.pipeline import catalog

catalog.find_tasks = lambda: Path(__file__).parent / "tasks"
main()
"""


def build(folder: Path) -> World:
    """Declare the world below `folder` and write its weights."""
    import torch

    from segros_eval.pipeline.catalog import load_catalog
    from segros_train.backbones.harmon.model import HarmonModel, initialise
    from segros_train.data.shapes.captions import corpus
    from segros_train.data.shapes.tokenizer import build_tokenizer

    world = World(folder)
    (folder / "command.py").write_text(COMMAND.lstrip("\n"), encoding="utf-8")
    card = load_catalog(declare(folder)).backbones["micro"]
    model = HarmonModel(card.config)
    initialise(model, torch.Generator().manual_seed(0))
    world.weights.mkdir(parents=True)
    torch.save(model.state_dict(), world.weights / "model.pth")
    build_tokenizer(corpus(50)).save(str(world.weights / "tokenizer.json"))
    return world
