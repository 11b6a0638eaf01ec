"""Whatever file passes for weights, every reader of weights refuses it with a message, and nothing of it is run."""

from __future__ import annotations

import ast
import contextlib
import json
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hostile_files import DAMAGED, HOSTILE
from PIL import Image
from safetensors import SafetensorError
from torch import nn

from pretraining import fitting, scenes
from segros_eval.benchmarks.dpgbench.mplug import answerer
from segros_eval.benchmarks.dpgbench.mplug.files import FILES, WEIGHTS, mplug_folder
from segros_eval.benchmarks.geneval.detector import colors, mmdet_worker, weights
from segros_eval.pipeline import preflight
from segros_eval.pipeline.catalog import load_catalog
from segros_train import weight_files
from segros_train.backbones.common import pretrained
from segros_train.backbones.common.weights import SHIPPED_WEIGHTS
from segros_train.backbones.loading import load
from segros_train.data import latent_cache
from segros_train.errors import PrerequisiteError
from segros_train.training import checkpoint
from segros_train.types import BackboneCard, WeightFile

ROOT = Path(__file__).parents[2]
CARDS = load_catalog(ROOT / "tasks").backbones
OPENERS = ("read_weight_file", "open_weight_file", "torch.jit.load", "load_file", "safe_open", "torch.load")
PLAIN = {"tokenizer", "vae-config", "scheduler"}
"""Roles of published files that hold no weights."""


@dataclass(frozen=True)
class Reader:
    """A function that opens weights.

    Attributes:
        name: Name of the file it is given.
        read: Calls it with that file.
        error: What it raises; a worker has none of our errors.
    """

    name: str
    read: Callable[[Path], object]
    error: type[Exception] = PrerequisiteError


def beside(path: Path, **values: Any) -> None:
    """Write what a reader wants to find beside weights."""
    for name, value in values.items():
        (path.parent / f"{name}.json").write_text(json.dumps(value))


def read_mplug(path: Path) -> object:
    folder = mplug_folder()
    folder.mkdir(parents=True)
    for name in FILES:
        (folder / name).touch()
    path.replace(folder / WEIGHTS)
    return answerer.open_mplug()


def read_latents(path: Path) -> object:
    image = Image.new("RGB", (2, 2))
    beside(path, index={"format": latent_cache.FORMAT, "items": {"a": latent_cache._digest(image)}})
    latents = latent_cache.LatentCache(path.parent).latents("a", image)
    assert latents is not None
    return latents["latents"]


def encode_latents(path: Path) -> object:
    beside(path, **{path.stem: {"a": "0"}})
    nothing: Any = None
    return latent_cache.encode(nothing, [nothing], path.parent)  # type: ignore[arg-type]


def load_training_state(path: Path) -> None:
    module = nn.Linear(1, 1)
    found = checkpoint.Checkpoint(path.parent, checkpoint.Progress(), {})
    checkpoint.load_training_state(found, module, torch.optim.AdamW(module.parameters()))


def resume_fit(path: Path) -> None:
    recipe = fitting.PartRecipe(steps=1, batch_size=1, learning_rate=1.0)
    fitting.fit(path.stem, nn.Linear(1, 1), lambda *_: torch.zeros(1), recipe, fitting.Run(path.parent))


def stored_scenes(path: Path) -> object:
    nothing: Any = None
    return scenes.encoded_scenes(nothing, fitting.Run(path.parent))


READERS: Mapping[str, tuple[Reader, ...]] = {
    "segros_eval/benchmarks/geneval/detector/colors.py:load_clip": (Reader("clip.pt", colors.load_clip),),
    "segros_eval/benchmarks/geneval/detector/mmdet_worker.py:_load_safetensors": (
        Reader("a.pth", lambda path: mmdet_worker._load_safetensors(str(path)), SafetensorError),
    ),
    "segros_eval/benchmarks/geneval/detector/weights.py:read_checkpoint": (
        Reader("a.pth", weights.read_checkpoint),
        Reader("a.safetensors", weights.read_checkpoint),
    ),
    "segros_eval/benchmarks/dpgbench/mplug/answerer.py:open_mplug": (Reader(WEIGHTS, read_mplug),),
    "segros_train/backbones/common/pretrained.py:read_state": (
        Reader("a.pth", pretrained.read_state),
        Reader("a.ckpt", pretrained.read_state),
        Reader("a.safetensors", pretrained.read_state),
    ),
    "pretraining/fitting.py:fit": (Reader("a.pt", resume_fit),),
    "pretraining/scenes.py:encoded_scenes": (Reader("scenes.pt", stored_scenes),),
    "segros_train/training/checkpoint.py:load_training_state": (
        Reader(checkpoint.TRAINING_STATE, load_training_state),
    ),
    "segros_train/data/latent_cache.py:_opened": (
        Reader("items-00000.safetensors", encode_latents),
        Reader("items-00000.safetensors", read_latents),
    ),
    "segros_eval/pipeline/preflight.py:_num_numbers": (Reader("a.safetensors", preflight._num_numbers),),
    "segros_train/weight_files.py:open_weight_file": (
        Reader("a.safetensors", lambda path: weight_files.open_weight_file(path, remedy="")),
    ),
    "segros_train/weight_files.py:read_weight_file": (Reader("a.pth", weight_files.read_weight_file),),
}
"""Every function that opens weights, as `file:function`, and how a test calls it."""


@pytest.fixture(autouse=True)
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Keep to a folder of the test's own, and let torch tell of odd pickles."""
    monkeypatch.setenv("SEGROS_HOME", str(tmp_path / "home"))
    with warnings.catch_warnings(action="ignore"):
        yield


@pytest.fixture
def marker(tmp_path: Path) -> Iterator[Path]:
    """Return the file that a call leaves; it must not be there in the end."""
    yield tmp_path / "ran"
    assert not (tmp_path / "ran").exists()


def opening_functions() -> set[str]:
    """Return every function of the library that opens weights, as `file:function`."""
    found = set()
    for package in ("segros_train", "segros_eval", "pretraining"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.FunctionDef) and any(
                    isinstance(inner, ast.Call) and ast.unparse(inner.func) in OPENERS for inner in ast.walk(node)
                ):
                    found.add(f"{path.relative_to(ROOT).as_posix()}:{node.name}")
    return found


def test_every_function_that_opens_weights_is_given_hostile_files() -> None:
    assert opening_functions() == READERS.keys()


@pytest.mark.parametrize("kind", HOSTILE)
def test_each_hostile_file_runs_where_pickles_are_trusted(kind: str, tmp_path: Path) -> None:
    (tmp_path / "a.pth").write_bytes(HOSTILE[kind](tmp_path / "ran"))
    # What comes after the call may be no weights; the call was made all the same.
    with contextlib.suppress(RuntimeError, AttributeError, AssertionError, TypeError):
        torch.load(tmp_path / "a.pth", weights_only=False)
    assert (tmp_path / "ran").exists()


def each_reader() -> list[Any]:
    return [
        pytest.param(reader, id=f"{name.rpartition('/')[2]}-{reader.name}")
        for name, readers in READERS.items()
        for reader in readers
    ]


def assert_refused(reader: Reader, content: bytes, folder: Path) -> None:
    path = folder / "weights" / reader.name
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(reader.error) as caught:
        reader.read(path)
    if reader.error is PrerequisiteError:
        assert path.name in str(caught.value)
        assert "weights_only" not in str(caught.value) or "tar" in str(caught.value)


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("reader", each_reader())
def test_a_hostile_file_is_refused_and_nothing_of_it_is_run(
    reader: Reader, kind: str, marker: Path, tmp_path: Path
) -> None:
    assert_refused(reader, HOSTILE[kind](marker), tmp_path)


@pytest.mark.parametrize("kind", DAMAGED)
@pytest.mark.parametrize("reader", each_reader())
def test_a_torn_file_or_one_that_lies_about_its_size_ends_in_a_message(
    reader: Reader, kind: str, tmp_path: Path
) -> None:
    assert_refused(reader, DAMAGED[kind], tmp_path)


def published_roles() -> list[Any]:
    """Return every published file of weights that a card declares."""
    return [
        pytest.param(card, weight, id=f"{card.name}-{weight.role}")
        for card in CARDS.values()
        for weight in card.weights
        if weight.role not in PLAIN
    ]


def plain_file(card: BackboneCard, role: str, path: Path) -> None:
    """Write a published file that is as it should be, or weights that hold nothing."""
    config: Any = card.config
    if role == "tokenizer":
        shutil.copy(SHIPPED_WEIGHTS / f"{card.family.replace('showo', 'show-o')}-tiny" / "tokenizer.json", path)
    elif role == "vae-config":
        vae = config.autoencoder
        values = {"scaling_factor": vae.scale, "latent_channels": vae.latent_channels}
        path.write_text(json.dumps({**values, "encoder_block_out_channels": list(vae.channels)}))
    elif role == "scheduler":
        fixed = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
        path.write_text(json.dumps({"flow_shift": config.flow_shift, **fixed}))
    elif path.suffix == ".safetensors":
        path.write_bytes((2).to_bytes(8, "little") + b"{}")
    else:
        torch.save({}, path)


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize(("card", "weight"), published_roles())
def test_a_backbone_refuses_a_hostile_file_in_place_of_any_published_one(
    card: BackboneCard, weight: WeightFile, kind: str, marker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cached(repo: str, name: str) -> str | None:
        own = {file.role for file in card.weights if file.repo == repo and file.filename in (name, None)}
        role = "tokenizer" if name == "tokenizer.json" else next(iter(sorted(own - {"tokenizer"})), "")
        # A role whose file may have several names has a pickle's, so that the family's own reader of pickles is met.
        if not role or (card.family == "showo" and role != "tokenizer" and not name.endswith(".bin")):
            return None
        path = tmp_path / role / Path(name).name
        path.parent.mkdir(exist_ok=True)
        if role == weight.role:
            path.write_bytes(HOSTILE[kind](marker))
        else:
            plain_file(card, role, path)
        return str(path)

    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", cached)
    with pytest.raises(PrerequisiteError, match="Cannot read the weights") as caught:
        load(card)
    assert str(tmp_path / weight.role) in str(caught.value)


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("card", [pytest.param(card, id=name) for name, card in CARDS.items() if not card.weights])
def test_a_backbone_refuses_a_hostile_file_in_a_checkpoint(
    card: BackboneCard, kind: str, marker: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(SHIPPED_WEIGHTS / card.name, tmp_path / "checkpoint"))
    (folder / "model.safetensors").write_bytes(HOSTILE[kind](marker))
    with pytest.raises(PrerequisiteError, match=r"Cannot read the weights .*model\.safetensors"):
        load(card, source=folder)
