"""Our Mask2Former beside mmdet 3.x itself, run in its own environment on our prepared tensor."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from segros_eval.detector_masks import normalised, prepare
from segros_eval.detector_mmdet import environment
from segros_eval.detector_weights import DetectorConfig, load_network


@pytest.fixture(scope="module")
def python() -> Path:
    path = environment() / "bin" / "python"
    if not path.is_file():
        message = f"mmdet's environment is not in {environment()}: `nox -s mmdet` builds it"
        pytest.fail(message) if os.environ.get("SEGROS_TEST_MMDET") else pytest.skip(message)
    return path


def test_mmdet_3_gives_the_same_logits_on_our_prepared_tensor(
    python: Path, pytestconfig: pytest.Config, tmp_path: Path
) -> None:
    folder = pytestconfig.getoption("--golden") / "mask2former"
    sizes = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    backbone = sizes["backbone"]
    config = DetectorConfig(
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
    network = load_network(folder / "weights.safetensors", config)
    picture = Image.open(folder / "image_00.png").convert("RGB")
    pixels = normalised([prepare(picture, config)], config, torch.device("cpu"))
    save_file({"pixels": pixels}, tmp_path / "pixels.safetensors")
    files = (folder / "config.json", folder / "weights.safetensors", tmp_path / "pixels.safetensors", tmp_path / "out")
    worker = Path(__file__).parent / "reference.py"
    subprocess.run([str(python), str(worker), *map(str, files)], check=True)
    theirs = load_file(tmp_path / "out")
    with torch.inference_mode():
        classes, masks = network(pixels)
    torch.testing.assert_close(classes, theirs["classes"], rtol=0, atol=1e-4)
    torch.testing.assert_close(masks, theirs["masks"], rtol=0, atol=5e-3)
