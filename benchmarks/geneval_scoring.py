"""Measure GenEval's scoring on a CPU beside a one-by-one loop over the same weights with full mask upsampling.

Usage: `python benchmarks/geneval_scoring.py [SIZE] [NUM_IMAGES]`, SIZE `small` (default) or `official`, whose networks
are those of GenEval in everything but their weights. Images are 512 px. Weights are random, and the detector's class
biases are set so that a picture has some ten instances above the threshold. A third of the prompts ask for a colour.

The loop does what the official scripts do with the networks as transformers and open_clip build them: a picture at a
time; the masks of all 100 queries brought to the padded, then to the picture's size; sigmoid, mean and box of the best
100; each clause's crops by themselves. The scripts also decode every file twice, and start four worker processes for
each clause's crops, which is left out here. Prints images per second of processor time, the best of several rounds in
turns, and their ratio.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import open_clip
import torch
from PIL import Image
from torch.nn.functional import interpolate

from segros_eval.benchmarks.base import Detection, Sample, Tools
from segros_eval.benchmarks.geneval.benchmark import GenEval
from segros_eval.benchmarks.geneval.detector.colors import MODEL, ColorClassifier, named_colors
from segros_eval.benchmarks.geneval.detector.mask2former import PhotoDetector
from segros_eval.benchmarks.geneval.detector.masks import normalised, prepare
from segros_eval.benchmarks.geneval.detector.weights import DetectorConfig, DetectorNetwork
from segros_eval.benchmarks.geneval.rules import OBJECT_NAMES

SMALL = DetectorConfig(
    embed_dim=24,
    depths=(2, 2, 2, 2),
    num_heads=(1, 2, 4, 8),
    feature_dim=64,
    mask_dim=64,
    encoder_layers=2,
    encoder_ffn_dim=96,
    decoder_layers=4,
    decoder_ffn_dim=128,
)
NUM_INSTANCES, NUM_ROUNDS = 6, 3
CPU = torch.device("cpu")


class OneByOne:
    """The official scripts' way."""

    def __init__(self, network: DetectorNetwork, classifier: ColorClassifier) -> None:
        self.network, self.classifier = network, classifier

    @torch.inference_mode()
    def detect(self, images: Sequence[Image.Image]) -> list[list[Detection]]:
        """Return the instances of each image."""
        return [self._one(image) for image in images]

    def colors(self, image: Image.Image, detections: Sequence[Detection]) -> list[str]:
        """Return the colours of one clause's instances."""
        return named_colors(self.classifier, [(image, detections)])[0]

    def _one(self, image: Image.Image) -> list[Detection]:
        config = self.network.config
        prepared = prepare(image, config)
        class_logits, mask_logits = self.network.in_transformers(normalised([prepared], config, CPU))
        masks = interpolate(mask_logits, size=prepared.pixels.shape[:2], mode="bilinear")
        masks = masks[:, :, : prepared.resized[0], : prepared.resized[1]]
        masks = interpolate(masks, size=prepared.original, mode="bilinear")[0]
        probabilities = class_logits[0].softmax(-1)[:, :-1]
        best, places = probabilities.flatten().topk(config.max_per_image)
        masks = masks[places // config.num_classes]
        inside = (masks > 0).float()
        means = (masks.sigmoid() * inside).flatten(1).sum(1) / (inside.flatten(1).sum(1) + 1e-6)
        return [
            Detection(OBJECT_NAMES[int(label)], box(mask), float(score), mask.numpy())
            for label, score, mask in zip(places % config.num_classes, best * means, inside.bool(), strict=True)
        ]


def box(mask: torch.Tensor) -> tuple[float, float, float, float]:
    """Return the extent of one mask."""
    rows, columns = (torch.where(mask.any(side))[0] for side in (1, 0))
    if not len(rows):
        return (0.0, 0.0, 0.0, 0.0)
    return (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))


def networks(size: str, image: Image.Image) -> tuple[DetectorNetwork, ColorClassifier]:
    """Return a detector of random weights that finds a few instances on a picture, and a colour classifier."""
    torch.manual_seed(0)
    network = DetectorNetwork(SMALL if size == "small" else DetectorConfig()).eval().requires_grad_(False)
    classes = network.class_predictor
    classes.weight.normal_(std=2.0)
    with torch.inference_mode():
        logits, _ = network(normalised([prepare(image, network.config)], network.config, CPU))
    leads = logits[0, :, :-1].amax(1) - logits[0, :, -1]
    # Random masks are unsure, so a class must be sure: as much above "none" as makes nine tenths.
    classes.bias[-1] += leads.sort(descending=True).values[NUM_INSTANCES] - 2
    if size == "small":
        vision = open_clip.CLIPVisionCfg(layers=2, width=64, patch_size=32)
        clip = open_clip.CLIP(32, vision, open_clip.CLIPTextCfg(layers=2, width=64, heads=1), quick_gelu=True)
    else:
        clip = open_clip.create_model(MODEL)
    return network, ColorClassifier(clip.eval().requires_grad_(False))


def record(thing: dict[str, Any], *, has_color: bool) -> dict[str, Any]:
    """Return a prompt's record; a third of GenEval's prompts ask for a colour."""
    if has_color:
        return {"tag": "colors", "prompt": "", "include": [{**thing, "color": "red"}]}
    return {"tag": "single_object", "prompt": "", "include": [thing]}


def main(size: str, num_images: int) -> None:
    """Print both rates and their ratio."""
    blocks = np.random.default_rng(0).integers(0, 255, (num_images, 16, 16, 3), dtype=np.uint8)
    images = [Image.fromarray(block).resize((512, 512), Image.Resampling.BICUBIC) for block in blocks]
    network, classifier = networks(size, images[0])
    bench = GenEval()
    detectors: dict[str, Any] = {
        "segros": PhotoDetector(network, classifier, min_score=bench.min_score),
        "one by one": OneByOne(network, classifier),
    }
    (found,) = detectors["segros"].detect(images[:1])
    thing = {"class": max(found, key=lambda one: one.score).label, "count": 1}
    samples = [
        Sample(str(number), str(number), "image", "", metadata=record(thing, has_color=number % 3 == 0))
        for number in range(num_images)
    ]
    seconds: dict[str, list[float]] = {name: [] for name in detectors}
    results: dict[str, Any] = {}
    for _ in range(NUM_ROUNDS):
        for name, detector in detectors.items():
            began = time.process_time()
            results[name] = bench.score(samples, images, Tools(detector=detector))
            seconds[name].append(time.process_time() - began)
    kept = [[(label, len(boxes)) for label, boxes in score.raw["kept"].items() if boxes] for score in results["segros"]]
    assert kept == [
        [(label, len(boxes)) for label, boxes in score.raw["kept"].items() if boxes] for score in results["one by one"]
    ]
    fast, slow = (num_images / min(seconds[name]) for name in ("segros", "one by one"))
    instances = sum(count for labels in kept for _, count in labels) / num_images
    sys.stdout.write(
        f"{size}: segros {fast:.3f} images/s; one by one {slow:.3f} images/s; ratio {fast / slow:.2f}; "
        f"{instances:.1f} instances an image; {torch.get_num_threads()} threads\n"
    )


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "small", int(sys.argv[2]) if len(sys.argv) > 2 else 8)
