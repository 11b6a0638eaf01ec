"""Measure GenEval's scoring beside a one-by-one loop over the same models with full mask upsampling, in one run.

Usage: `python benchmarks/geneval_scoring.py [NUM_IMAGES] [GOLDEN]`. Images are 512 px. Detector and colour classifier
have the small random weights of the golden sets below GOLDEN (default: the committed ones), and run once as `GenEval`
runs them, and once as the official script does: a picture at a time, all 100 masks brought to the picture's size, each
mask's box by itself, each clause's crops by themselves. On a CPU in processor time. Prints images per second of both,
and their ratio.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from PIL import Image
from safetensors.torch import load_file

from segros_eval.detector import PhotoDetector
from segros_eval.detector_colors import ColorClassifier, named_colors
from segros_eval.detector_masks import normalised, prepare
from segros_eval.detector_weights import DetectorConfig, DetectorNetwork, load_network
from segros_eval.evaluators import Detection, Sample, Tools
from segros_eval.evaluators.geneval import GenEval
from segros_eval.evaluators.geneval_rules import OBJECT_NAMES

GOLDEN = Path(__file__).parent.parent / "tests" / "golden" / "data"


class OneByOne:
    """The official script's way with the same networks."""

    def __init__(self, network: DetectorNetwork, classifier: ColorClassifier) -> None:
        self.network, self.classifier = network, classifier

    @torch.inference_mode()
    def detect(self, images: Sequence[Image.Image]) -> list[list[Detection]]:
        """Return the instances of each image."""
        return [self._one(image) for image in images]

    def colors(self, image: Image.Image, detections: Sequence[Detection]) -> list[str]:
        """Return the colours of one clause's instances."""
        return [named_colors(self.classifier, [(image, [found])])[0][0] for found in detections]

    def _one(self, image: Image.Image) -> list[Detection]:
        config = self.network.config
        prepared = prepare(image, config)
        class_logits, mask_logits = self.network(normalised([prepared], config, torch.device("cpu")))
        probabilities = class_logits[0].softmax(-1)[:, :-1]
        best, places = probabilities.flatten().topk(config.max_per_image)
        resize = torch.nn.functional.interpolate
        masks = resize(mask_logits, size=prepared.pixels.shape[:2], mode="bilinear")
        masks = masks[:, :, : prepared.resized[0], : prepared.resized[1]]
        masks = resize(masks, size=prepared.original, mode="bilinear")[0][places // config.num_classes]
        found = []
        for probability, place, logits in zip(best, places % config.num_classes, masks, strict=True):
            inside = logits > 0
            mean = (logits.sigmoid() * inside).sum() / (inside.sum() + 1e-6)
            rows, columns = (torch.where(inside.any(side))[0] for side in (1, 0))
            box = (0.0, 0.0, 0.0, 0.0)
            if len(rows):
                box = (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))
            found.append(Detection(OBJECT_NAMES[int(place)], box, float(probability * mean), inside.numpy()))
        return found


def networks(golden: Path) -> tuple[DetectorNetwork, ColorClassifier]:
    """Return the small detector and colour classifier of the golden sets."""
    sizes = json.loads((golden / "mask2former" / "config.json").read_text(encoding="utf-8"))
    backbone = sizes["backbone"]
    config = DetectorConfig(
        embed_dim=backbone["embed_dims"],
        depths=tuple(backbone["depths"]),
        num_heads=tuple(backbone["num_heads"]),
        feature_dim=sizes["feat_channels"],
        mask_dim=sizes["out_channels"],
        num_groups=sizes["gn_groups"],
        decoder_heads=sizes["num_heads"],
        encoder_layers=sizes["encoder_layers"],
        encoder_ffn_dim=sizes["encoder_ffn"],
        decoder_layers=sizes["decoder_layers"],
        decoder_ffn_dim=sizes["decoder_ffn"],
        num_queries=sizes["num_queries"],
    )
    colors = golden / "geneval_color"
    of_clip = json.loads((colors / "cases.json").read_text(encoding="utf-8"))["clip"]
    vision, text = open_clip.CLIPVisionCfg(**of_clip["vision_cfg"]), open_clip.CLIPTextCfg(**of_clip["text_cfg"])
    clip = open_clip.CLIP(embed_dim=of_clip["embed_dim"], vision_cfg=vision, text_cfg=text, quick_gelu=True)
    clip.load_state_dict(load_file(colors / "weights.safetensors"))
    return load_network(golden / "mask2former" / "weights.safetensors", config), ColorClassifier(clip.eval())


def rate(work: Callable[[], Any], num_images: int) -> float:
    """Return images per second of processor time."""
    began = time.process_time()
    work()
    return num_images / (time.process_time() - began)


def main(num_images: int, golden: Path) -> None:
    """Print both rates and their ratio."""
    network, classifier = networks(golden)
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 255, (num_images, 16, 16, 3), dtype=np.uint8)
    images = [Image.fromarray(block).resize((512, 512), Image.Resampling.BICUBIC) for block in blocks]
    record = {
        "tag": "colors",
        "prompt": "a photo of a red dog",
        "include": [{"class": "dog", "count": 1, "color": "red"}],
    }
    samples = [
        Sample(str(number), str(number), "image", record["prompt"], metadata=record) for number in range(num_images)
    ]
    bench = GenEval()
    ours = PhotoDetector(network, classifier, min_score=bench.min_score)
    theirs = OneByOne(network, classifier)
    results = {}

    def run(name: str, detector: Any) -> Callable[[], None]:
        def work() -> None:
            results[name] = bench.score(samples, images, Tools(detector=detector))

        return work

    bench.score(samples[:1], images[:1], Tools(detector=ours))
    slow, fast = rate(run("one by one", theirs), num_images), rate(run("segros", ours), num_images)
    assert [score.value for score in results["segros"]] == [score.value for score in results["one by one"]]
    sys.stdout.write(f"segros {fast:.2f} images/s; one by one {slow:.2f} images/s; ratio {fast / slow:.2f}\n")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 8, Path(sys.argv[2]) if len(sys.argv) > 2 else GOLDEN)
