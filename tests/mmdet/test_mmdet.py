"""Our Mask2Former beside mmdet 3.x itself, run in its own environment: the networks alone, then all around them."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from segros_eval.benchmarks.base import Detection, EvalTask, Sample, Tools
from segros_eval.benchmarks.geneval.benchmark import GenEval
from segros_eval.benchmarks.geneval.detector import colors, mmdet
from segros_eval.benchmarks.geneval.detector import files as detector_files
from segros_eval.benchmarks.geneval.detector.mask2former import PhotoDetector
from segros_eval.benchmarks.geneval.detector.masks import normalised, prepare
from segros_eval.benchmarks.geneval.detector.mmdet import MmdetDetector, environment
from segros_eval.benchmarks.geneval.detector.weights import (
    DetectorConfig,
    DetectorNetwork,
    load_network,
    read_checkpoint,
    to_mmdet_3,
)
from segros_eval.pipeline.judges import Judges
from segros_eval.pipeline.tools import open_tools
from segros_train.errors import PrerequisiteError
from segros_train.files import file_sha256

REFERENCE = Path(__file__).parent / "reference.py"
RECORD = {
    "tag": "colors",
    "prompt": "a photo of a red dog",
    "include": [{"class": "dog", "count": 1, "color": "red"}],
}


@pytest.fixture(scope="module")
def python() -> Path:
    path = environment() / "bin" / "python"
    if not path.is_file():
        message = f"mmdet's environment is not in {environment()}: `nox -s mmdet` builds it"
        pytest.fail(message) if os.environ.get("SEGROS_TEST_MMDET") else pytest.skip(message)
    return path


@pytest.fixture(scope="module")
def checkpoint(python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return random weights of the official size, in a file that is named as published ones are."""
    folder = tmp_path_factory.mktemp("checkpoint")
    subprocess.run([str(python), str(REFERENCE), "weights", str(folder / "weights.pth")], check=True)
    digest = file_sha256(folder / "weights.pth")
    return (folder / "weights.pth").rename(folder / f"random-{digest[:8]}.pth")


@pytest.fixture(scope="module")
def network(checkpoint: Path) -> DetectorNetwork:
    return load_network(checkpoint)


@pytest.fixture(scope="module")
def tools(checkpoint: Path) -> Iterator[Tools]:
    """Open mmdet as an evaluation with `detector = "mmdet"` does; weights alone are others than the official ones."""
    torch.manual_seed(1)
    sizes: dict[str, Any] = {
        "vision_cfg": open_clip.CLIPVisionCfg(layers=1, width=64, patch_size=32, image_size=64),
        "text_cfg": open_clip.CLIPTextCfg(width=64, heads=1, layers=1),
    }
    clip = open_clip.CLIP(embed_dim=8, **sizes, quick_gelu=True).eval()
    files = (checkpoint, checkpoint.parent / "clip.pt")
    files[1].touch()
    with pytest.MonkeyPatch.context() as patch:
        for module in (detector_files, mmdet):
            patch.setattr(module, "detector_files", lambda: files)
        patch.setattr(colors, "load_clip", lambda path: clip)
        opened = open_tools(task(), "photo", judges=Judges())
    yield opened
    assert isinstance(opened.detector, MmdetDetector)
    opened.detector.close()


def task() -> EvalTask:
    return EvalTask("geneval", "GenEval", GenEval(detector="mmdet", threshold=0.01), ("photo", "shapes"))


def painted(*sizes: tuple[int, int]) -> list[Image.Image]:
    blocks = np.random.default_rng(0).integers(0, 255, (len(sizes), 16, 16, 3), dtype=np.uint8)
    return [
        Image.fromarray(block).resize(size, Image.Resampling.BICUBIC) for block, size in zip(blocks, sizes, strict=True)
    ]


def golden_config(sizes: dict[str, Any]) -> DetectorConfig:
    backbone = sizes["backbone"]
    return DetectorConfig(
        embed_dim=backbone["embed_dims"],
        depths=tuple(backbone["depths"]),
        num_heads=tuple(backbone["num_heads"]),
        window_size=backbone["window_size"],
        mlp_ratio=backbone["mlp_ratio"],
        feature_dim=sizes["feat_channels"],
        mask_dim=sizes["out_channels"],
        num_groups=sizes["gn_groups"],
        decoder_heads=sizes["num_heads"],
        encoder_layers=sizes["encoder_layers"],
        encoder_ffn_dim=sizes["encoder_ffn"],
        decoder_layers=sizes["decoder_layers"],
        decoder_ffn_dim=sizes["decoder_ffn"],
        num_queries=sizes["num_queries"],
        num_classes=sizes["num_classes"],
        image_scale_px=(333, 200),
    )


def assert_same_logits(
    python: Path, network: DetectorNetwork, picture: Image.Image, *, sizes: str, checkpoint: Path, folder: Path
) -> None:
    pixels = normalised([prepare(picture, network.config)], network.config, torch.device("cpu"))
    save_file({"pixels": pixels}, folder / "pixels.safetensors")
    files = (sizes, checkpoint, folder / "pixels.safetensors", folder / "logits.safetensors")
    subprocess.run([str(python), str(REFERENCE), "logits", *map(str, files)], check=True)
    theirs = load_file(folder / "logits.safetensors")
    with torch.inference_mode():
        classes, masks = network(pixels)
    torch.testing.assert_close(classes, theirs["classes"], rtol=0, atol=1e-4)
    torch.testing.assert_close(masks, theirs["masks"], rtol=0, atol=5e-3)


def test_the_official_configuration_gives_the_same_logits_on_our_prepared_tensor(
    python: Path, network: DetectorNetwork, checkpoint: Path, tmp_path: Path
) -> None:
    (picture,) = painted((320, 192))
    # A picture that is not enlarged: sizes of the network are the official ones, the picture's need not be.
    network.config, whole = DetectorConfig(image_scale_px=(320, 192)), network.config
    try:
        assert_same_logits(python, network, picture, sizes="-", checkpoint=checkpoint, folder=tmp_path)
    finally:
        network.config = whole


def test_the_goldens_weights_give_the_same_logits_in_mmdet_3(
    python: Path, golden_set: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = golden_set("mask2former")
    sizes = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    network = load_network(folder / "weights.safetensors", golden_config(sizes))
    checkpoint = tmp_path / "weights.pth"
    torch.save({"state_dict": to_mmdet_3(read_checkpoint(folder / "weights.safetensors"))}, checkpoint)
    picture = Image.open(folder / "image_00.png").convert("RGB")
    files = {"sizes": str(folder / "config.json"), "checkpoint": checkpoint, "folder": tmp_path}
    assert_same_logits(python, network, picture, **files)


def pairs(ours: Sequence[Detection], theirs: Sequence[Detection]) -> int:
    """Return how many of their instances are ours: equal in label, score and box, and in nearly every pixel."""
    return sum(
        any(
            one.label == other.label
            and abs(one.score - other.score) < 1e-4
            and max(abs(a - b) for a, b in zip(one.box, other.box, strict=True)) <= 1
            and (one.mask != other.mask).mean() < 1e-4
            for one in ours
        )
        for other in theirs
    )


def test_geneval_with_detector_mmdet_scores_images_and_finds_what_our_detector_finds(
    tools: Tools, network: DetectorNetwork
) -> None:
    # The first two are neither resized nor padded, which mmdet 3.x does otherwise than 2.x and we.
    images = painted((800, 800), (1024, 800), (300, 200))
    assert tools.detector is not None
    theirs = tools.detector.detect(images)
    for image, found in zip(images, theirs, strict=True):
        assert len(found) == 100
        for one in found:
            x0, y0, x1, y1 = one.box
            assert one.mask.shape == image.size[::-1] and one.mask.dtype == bool
            assert 0 <= x0 <= x1 <= image.width and 0 <= y0 <= y1 <= image.height
    ours = PhotoDetector(network).detect(images[:2])
    for our, their in zip(ours, theirs, strict=False):
        # Candidates at the very end of the best hundred may change places.
        assert pairs(our, their) >= 98
    samples = [
        Sample(f"00000/{number:05d}", "00000", "image", RECORD["prompt"], metadata=RECORD) for number in range(3)
    ]
    scores = task().evaluator.score(samples, images, tools)
    assert [score.status for score in scores] == ["scored"] * 3
    assert all(score.raw["kept"] for score in scores)


def test_what_runs_is_recorded(tools: Tools, checkpoint: Path) -> None:
    assert isinstance(tools.detector, MmdetDetector)
    record = tools.detector.record
    assert record["mmdet"] == "3.3.0" and record["torch"].startswith("2.1.2")
    assert record["checkpoint"] == file_sha256(checkpoint)


def test_weights_of_another_network_are_refused_and_not_left_out(
    python: Path, checkpoint: Path, tmp_path: Path
) -> None:
    state = {name: tensor for name, tensor in read_checkpoint(checkpoint).items() if "cls_embed" not in name}
    torch.save({"state_dict": state}, tmp_path / "other.pth")
    with pytest.raises(PrerequisiteError, match="ended with code 1"):
        MmdetDetector(python, tmp_path / "other.pth", None)
