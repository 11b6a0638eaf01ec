"""The commands on OpenUni: the tiny one is encoded and trained, the full-size ones go up to what is missing."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageOps
from safetensors.torch import save_file
from typer.testing import CliRunner, Result

from segros_eval.cli import app
from segros_eval.pipeline.catalog import load_catalog
from segros_train.backbone import Conditioning
from segros_train.backbones.openuni.model import OpenUniModel
from segros_train.data.shapes.sets import GenerationSet
from segros_train.files import write_json

TASKS = Path(__file__).parents[2] / "tasks"
FULL_SIZE = ("openuni-1.6b", "openuni-3.6b")
NUM_PICTURES = 6
NUM_ENCODED = 40
PICTURES = """
from segros_train.types import DataCard

pictures = DataCard(name="pictures", world="shapes", generation="folder:pictures")
"""
MINE = ("--data", "pictures", "--tasks", "mine")
ENCODE_IN_PAIRS = (
    "from segros_train.data import latent_cache as latents\nlatents.SHARD_ITEMS = 2\nfrom segros_eval.cli import "
    "main\nmain()"
)
Segros = Callable[..., Result]


@pytest.fixture
def segros(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Segros:
    """Return a caller of the command line in a folder with six captioned pictures, declared, and no weights."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "data.py").write_text(PICTURES, encoding="utf-8")
    (tmp_path / "pictures").mkdir()
    for index in range(NUM_PICTURES):
        sample = GenerationSet(seed=5)[index]
        sample.image.save(tmp_path / "pictures" / f"{index}.png")
        (tmp_path / "pictures" / f"{index}.txt").write_text(sample.caption, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
    for name, value in (("SEGROS_HOME", str(tmp_path / "home")), ("COLUMNS", "100"), ("NO_COLOR", "1")):
        monkeypatch.setenv(name, value)
    return lambda *arguments: CliRunner().invoke(app.app, [str(argument) for argument in arguments])


def train(segros: Segros, method: str, *options: str) -> Result:
    short = ("--set", "optimizer_steps=2", "--set", "recipe.batch_size=4", "--set", "warmup_steps=0")
    return segros("train", "--method", method, "--backbone", "openuni-tiny", *MINE, *short, *options)


def last_losses(method: str) -> list[float]:
    (metrics,) = Path("runs").glob(f"{method}-openuni-tiny-*/train/metrics.jsonl")
    return [json.loads(line)["loss"] for line in metrics.read_text(encoding="utf-8").splitlines()]


FIXED = ("--set", "crop=fixed")


def provenance_of_training(method: str) -> dict[str, Any]:
    (plan,) = Path("runs").glob(f"{method}-openuni-tiny-*/plan.json")
    return json.loads(plan.read_text(encoding="utf-8"))


def test_training_with_a_cache_computes_nothing_again_names_it_and_has_the_losses_of_one_without(
    segros: Segros, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = {}
    for method in ("segros", "sft"):
        assert (done := train(segros, method, *FIXED)).exit_code == 0, done.stderr
        losses[method] = last_losses(method)
    shutil.rmtree(tmp_path / "runs")
    done = segros("data", "encode", "openuni-tiny", *MINE)
    assert done.exit_code == 0, done.stderr
    assert f"({NUM_PICTURES} images)" in done.stdout
    for computes in ("encode_images", "see"):
        monkeypatch.setattr(OpenUniModel, computes, None)
    for method in ("segros", "sft"):
        assert (done := train(segros, method, *FIXED, "--latents")).exit_code == 0, done.stderr or done.exception
        said = " ".join(done.stderr.split())
        assert f"{NUM_PICTURES} of {NUM_PICTURES} images were encoded beforehand" in said
        assert last_losses(method) == pytest.approx(losses[method], rel=1e-5)
        (cache,) = (tmp_path / "home" / "latents").iterdir()
        assert provenance_of_training(method)["latents"] == cache.name


def test_a_cache_that_happens_to_lie_on_the_disk_is_not_read(segros: Segros, tmp_path: Path) -> None:
    """Pictures that are wider than high are cropped anew each time, whatever was encoded of them."""
    for path in (tmp_path / "pictures").glob("*.png"):
        with Image.open(path) as image:
            wide = ImageOps.expand(image.convert("RGB"), border=(0, 0, image.width, 0), fill=(200, 30, 90))
        wide.save(path)
    assert (done := train(segros, "sft")).exit_code == 0, done.stderr
    losses = last_losses("sft")
    shutil.rmtree(tmp_path / "runs")
    assert segros("data", "encode", "openuni-tiny", *MINE).exit_code == 0
    assert (done := train(segros, "sft")).exit_code == 0, done.stderr
    assert "encoded beforehand" not in done.stderr
    assert last_losses("sft") == losses
    shutil.rmtree(tmp_path / "runs")
    assert train(segros, "sft", *FIXED, "--latents").exit_code == 0
    assert last_losses("sft") != pytest.approx(losses, rel=1e-3), "one crop and many have other losses"


def test_a_cache_is_refused_where_crops_are_random_and_where_it_is_missing(segros: Segros) -> None:
    for options, words in ((("--latents",), "--set crop=fixed"), ((*FIXED, "--latents"), "segros data encode")):
        done = train(segros, "sft", *options)
        assert done.exit_code == 2
        assert words in " ".join(done.stderr.split())


def test_the_crop_is_part_of_the_key_and_the_cache_is_not(segros: Segros) -> None:
    keys = []
    for options in ((), FIXED, (*FIXED, "--latents")):
        arguments = ("--method", "sft", "--backbone", "openuni-tiny", *MINE, *options)
        done = segros("train", *arguments, "--dry-run", "--json")
        keys.append(json.loads(done.stdout)["plan"][0]["key"])
    assert keys[0] != keys[1] == keys[2]


def test_an_encoding_that_was_killed_goes_on_where_it_was(segros: Segros, tmp_path: Path) -> None:
    command = [sys.executable, "-c", ENCODE_IN_PAIRS, "data", "encode", "openuni-tiny", "--limit", str(NUM_ENCODED)]
    latents = tmp_path / "home" / "latents"
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL)
    while not (made := list(latents.glob("*/items-00001.json"))):
        assert process.poll() is None, "the encoding ended before it could be killed"
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    folder = made[0].parent
    assert not (folder / "index.json").exists()
    first = (folder / "items-00000.safetensors").stat()
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert (folder / "items-00000.safetensors").stat().st_mtime_ns == first.st_mtime_ns
    items = json.loads((folder / "index.json").read_text(encoding="utf-8"))["items"]
    assert list(items) == [f"shapes-0-{index}" for index in range(NUM_ENCODED)]


def foreign_checkpoint(folder: Path, name: str) -> Path:
    """Write what a checkpoint of a full-size model looks like to whoever does not read its weights."""
    card = load_catalog(TASKS).backbones[name]
    save_file({"meta_queries": torch.zeros(1)}, folder / "model.safetensors")
    (folder / "tokenizer.json").write_text("{}", encoding="utf-8")
    write_json(
        folder / "config.json",
        {"family": "openuni", "card": name, "config": asdict(card.config), "realisation": asdict(Conditioning())},
    )
    return folder


@pytest.mark.parametrize("name", FULL_SIZE)
def test_every_command_on_a_full_size_model_names_the_missing_weights_and_exits_with_2(
    segros: Segros, tmp_path: Path, name: str
) -> None:
    (tmp_path / "checkpoint").mkdir()
    checkpoint = foreign_checkpoint(tmp_path / "checkpoint", name)
    published = [file for file in load_catalog(TASKS).backbones[name].weights if file.role != "model"]
    for arguments in (
        ("run", "--method", "all", "--backbone", name, "--eval", "geneval"),
        ("train", "--method", "sft,reca,segros,drop-loss", "--backbone", name),
        ("eval", "--checkpoint", checkpoint, "--method", "sft", "--eval", "geneval"),
        ("explain", "--backbone", name, "--image", "pictures/0.png", "--caption", "a red circle"),
        ("export", checkpoint),
        ("data", "encode", name),
    ):
        done = segros(*arguments)
        assert done.exit_code == 2, (arguments, done.stderr, done.exception)
        assert done.stdout == "" and "Traceback" not in done.stderr
        for file in published:
            assert f"of {file.repo} ({file.role} of {name}) is missing" in done.stderr, arguments
        assert f"hf download {published[0].repo}" in done.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("name", FULL_SIZE)
def test_a_dry_run_on_a_full_size_model_shows_every_method_and_what_is_missing(segros: Segros, name: str) -> None:
    done = segros("run", "--method", "all", "--backbone", name, "--eval", "geneval", "--dry-run")
    assert done.exit_code == 0, done.stderr
    for method in ("none", "sft", "reca", "segros", "drop-loss"):
        assert f" {method} " in done.stdout
    for file in load_catalog(TASKS).backbones[name].weights:
        assert f"of {file.repo} ({file.role} of {name}) is missing" in done.stdout
    assert "Training data midjourney-v6" in done.stdout
