"""GenEval's detector against mmdet 2.x: the same instances from the same weights, on the same images."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bounds import close
from golden_masks import decoded
from PIL import Image
from safetensors.torch import load_file, save_file

from segros_eval.benchmarks.base import Detection
from segros_eval.benchmarks.geneval.detector.mask2former import PhotoDetector, check_self_test
from segros_eval.benchmarks.geneval.detector.masks import normalised, prepare, select_instances
from segros_eval.benchmarks.geneval.detector.weights import DetectorConfig, DetectorNetwork, load_network
from segros_train.errors import PrerequisiteError


def config_of(path: Path) -> DetectorConfig:
    """Return the sizes and constants that the set was made with, under our names."""
    sizes = json.loads(path.read_text(encoding="utf-8"))
    backbone, test = sizes["backbone"], sizes["test"]
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
        image_scale_px=tuple(test["img_scale"]),
        mean=tuple(test["mean"]),
        std=tuple(test["std"]),
        pad_divisor=test["pad_divisor"],
        pad_value=test["pad_value"],
        max_per_image=test["max_per_image"],
    )


@pytest.fixture(scope="module")
def folder(golden_set: Callable[[str], Path]) -> Path:
    return golden_set("mask2former")


@pytest.fixture(scope="module")
def cases(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "cases.json").read_text(encoding="utf-8"))["cases"]


@pytest.fixture(scope="module")
def network(folder: Path) -> DetectorNetwork:
    return load_network(folder / "weights.safetensors", config_of(folder / "config.json"))


@pytest.fixture(scope="module")
def pictures(folder: Path, cases: Sequence[Mapping[str, Any]]) -> list[Image.Image]:
    return [Image.open(folder / case["image"]) for case in cases]


def names(network: DetectorNetwork) -> list[str]:
    return [str(index) for index in range(network.config.num_classes)]


@pytest.fixture(scope="module")
def logits(network: DetectorNetwork, pictures: Sequence[Image.Image]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    found = []
    for picture in pictures:
        with torch.inference_mode():
            classes, masks = network(
                normalised([prepare(picture, network.config)], network.config, torch.device("cpu"))
            )
        found.append((classes[0], masks[0]))
    return found


@pytest.fixture(scope="module")
def found(
    network: DetectorNetwork,
    pictures: Sequence[Image.Image],
    logits: Sequence[tuple[torch.Tensor, torch.Tensor]],
) -> list[list[Detection]]:
    """Return the instances of each image in descending order of score, with label indices as names."""
    detector = PhotoDetector(network, class_names=names(network))
    whole = [
        detector._detections(classes, masks, prepare(picture, network.config))
        for picture, (classes, masks) in zip(pictures, logits, strict=True)
    ]
    return [sorted(instances, key=lambda one: -one.score) for instances in whole]


def matched(expected: Sequence[Mapping[str, Any]], given: Sequence[Detection]) -> list[Detection | None]:
    """Return the instance that each expected one is: equal in label, near in score and box; each serves once."""
    left = list(given)
    pairs: list[Detection | None] = []
    for want in expected:
        fitting = [
            one
            for one in left
            if one.label == str(want["label"])
            and abs(one.score - want["score"]) < 1e-4
            and max(abs(a - b) for a, b in zip(one.box, want["box"], strict=True)) <= 1
        ]
        best = min(fitting, key=lambda one: abs(one.score - want["score"]), default=None)
        if best is not None:
            left.pop(next(place for place, one in enumerate(left) if one is best))
        pairs.append(best)
    return pairs


def test_sizes_before_the_network_are_those_of_mmdet(
    network: DetectorNetwork, cases: Sequence[Mapping[str, Any]], pictures: Sequence[Image.Image]
) -> None:
    for case, picture in zip(cases, pictures, strict=True):
        prepared = prepare(picture, network.config)
        assert list(prepared.resized) == case["img_shape"][:2]
        assert list(prepared.pixels.shape[:2]) == case["pad_shape"][:2]
        assert list(prepared.original) == case["ori_shape"][:2]


def test_logits_are_those_of_mmdet(folder: Path, logits: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> None:
    path = folder / "activations.safetensors"
    if not path.is_file():
        pytest.skip(f"the golden set has no {path}")
    recorded = load_file(path)
    for index, (classes, masks) in enumerate(logits):
        close(classes, recorded[f"{index}.class_logits"])
        # The committed set has the masks' logits of its first image alone.
        if index == 0 or f"{index}.mask_logits_s4" in recorded:
            close(masks[:, ::4, ::4], recorded[f"{index}.mask_logits_s4"])


def test_every_instance_is_equal_in_label_score_and_box(
    cases: Sequence[Mapping[str, Any]], found: Sequence[Sequence[Detection]]
) -> None:
    for case, instances in zip(cases, found, strict=True):
        assert len(instances) == case["n_instances"] == len(case["instances"])
        assert None not in matched(case["instances"], instances)


def test_recorded_masks_are_equal(cases: Sequence[Mapping[str, Any]], found: Sequence[Sequence[Detection]]) -> None:
    overlaps = []
    for case, instances in zip(cases, found, strict=True):
        for want, one in zip(case["instances"], matched(case["instances"], instances), strict=True):
            if want.get("mask") is not None and one is not None:
                mask = decoded(want["mask"])
                overlaps.append((mask & one.mask).sum() / max(1, (mask | one.mask).sum()))
                assert abs(int(one.mask.sum()) - want["mask_area"]) <= max(1, 1e-4 * want["mask_area"])
    assert overlaps and min(overlaps) >= 0.9999


def test_leaving_out_what_cannot_pass_the_threshold_changes_nothing_above_it(
    network: DetectorNetwork,
    pictures: Sequence[Image.Image],
    logits: Sequence[tuple[torch.Tensor, torch.Tensor]],
) -> None:
    num_left_out = 0
    for picture, (classes, masks) in zip(pictures, logits, strict=True):
        prepared = prepare(picture, network.config)
        whole = select_instances(classes, masks, prepared, max_per_image=100, min_score=0)
        middle = float(whole.scores.median())
        few = select_instances(classes, masks, prepared, max_per_image=100, min_score=middle)
        above = whole.scores > middle
        kept = few.scores > middle
        assert torch.equal(whole.scores[above], few.scores[kept])
        assert torch.equal(whole.labels[above], few.labels[kept])
        assert torch.equal(whole.boxes[above], few.boxes[kept])
        assert torch.equal(whole.masks[above], few.masks[kept])
        num_left_out += len(whole.scores) - len(few.scores)
    assert num_left_out > 0


def test_a_batch_gives_what_single_images_give(
    network: DetectorNetwork, pictures: Sequence[Image.Image], found: Sequence[Sequence[Detection]]
) -> None:
    small = [picture.resize((96, 96)) for picture in pictures[:2]]
    one_size = replace(network.config, image_scale_px=(320, 192))
    network.config = one_size
    try:
        detector = PhotoDetector(network, class_names=names(network), batch_size=2)
        together = detector.detect(small)
        alone = [detector.detect([picture])[0] for picture in small]
    finally:
        network.config = replace(one_size, image_scale_px=(1333, 800))
    for a, b in zip(together, alone, strict=True):
        assert len(a) == len(b)
        near = matched([{"label": one.label, "score": one.score, "box": one.box} for one in b], a)
        assert None not in near


def test_a_checkpoint_under_the_names_of_mmdet_3_is_the_same_network(
    folder: Path, network: DetectorNetwork, tmp_path: Path
) -> None:
    state = load_file(folder / "weights.safetensors")
    renamed = {}
    for name, tensor in state.items():
        if "pixel_decoder.encoder" in name:
            name = name.replace(".attentions.0.", ".self_attn.").replace(".ffns.0.", ".ffn.")
        if "transformer_decoder.layers" in name:
            name = name.replace(".attentions.0.", ".cross_attn.").replace(".attentions.1.", ".self_attn.")
            name = name.replace(".ffns.0.", ".ffn.")
        renamed[name] = tensor.contiguous()
    save_file(renamed, tmp_path / "weights.safetensors")
    again = load_network(tmp_path / "weights.safetensors", network.config).state_dict()
    assert all(
        torch.equal(tensor, again[name])
        for name, tensor in network.state_dict().items()
        if "swin.layernorm" not in name
    )


def test_the_published_form_of_a_checkpoint_is_read_without_running_what_it_names(
    folder: Path, network: DetectorNetwork, tmp_path: Path
) -> None:
    class Foreign:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    content = {"meta": {"epoch": np.int64(3)}, "state_dict": load_file(folder / "weights.safetensors")}
    for zipped in (True, False):
        torch.save(content, tmp_path / "model.pth", _use_new_zipfile_serialization=zipped)
        again = load_network(tmp_path / "model.pth", network.config).state_dict()
        assert torch.equal(again["class_predictor.weight"], network.state_dict()["class_predictor.weight"])
        torch.save({**content, "hook": Foreign()}, tmp_path / "model.pth", _use_new_zipfile_serialization=zipped)
        with pytest.raises(PrerequisiteError, match="asks for pathlib.Path"):
            load_network(tmp_path / "model.pth", network.config)
    assert not (tmp_path / "ran").exists()


def test_a_checkpoint_of_another_network_is_refused(folder: Path, network: DetectorNetwork, tmp_path: Path) -> None:
    state = load_file(folder / "weights.safetensors")
    lacking = {name: tensor for name, tensor in state.items() if "cls_embed" not in name}
    save_file(lacking, tmp_path / "weights.safetensors")
    with pytest.raises(PrerequisiteError, match="lacks 2 tensors, e.g. class_predictor"):
        load_network(tmp_path / "weights.safetensors", network.config)


def test_the_self_test_records_at_first_and_notices_a_changed_network(network: DetectorNetwork, tmp_path: Path) -> None:
    record = tmp_path / "self-test.json"
    assert check_self_test(network, digest="golden", record=record) is False
    first = record.read_text(encoding="utf-8")
    assert check_self_test(network, digest="golden", record=record) is False
    assert record.read_text(encoding="utf-8") == first
    assert len(json.loads(first)["golden"]) == 10
    bias = network.class_predictor.bias
    kept = bias.clone()
    bias.add_(torch.linspace(0, 2, len(bias)))
    try:
        with pytest.raises(PrerequisiteError, match="fails its self-test"):
            check_self_test(network, digest="golden", record=record)
    finally:
        bias.copy_(kept)
