"""The detector of photographs: Mask2Former for objects, CLIP for their colours, without an mmdet installation.

A silent change of the network's arithmetic (another version, another device) would move every number. Before it
scores, the detector therefore looks at one fixed picture: what it finds there with the official weights is recorded
at first use and must be found ever after.

Source: djghosh13/geneval@af4902f, evaluation/evaluate_images.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from segros_eval.benchmarks.base import Detection
from segros_eval.benchmarks.geneval.detector.files import checked_checkpoint, detector_files
from segros_eval.benchmarks.geneval.detector.masks import Prepared, normalised, prepare, select_instances
from segros_eval.benchmarks.geneval.detector.weights import DetectorNetwork, load_network
from segros_eval.benchmarks.geneval.rules import OBJECT_NAMES
from segros_train.errors import PrerequisiteError
from segros_train.files import write_json

if TYPE_CHECKING:
    from segros_eval.benchmarks.geneval.detector.colors import ColorClassifier

__all__ = ["PhotoDetector", "check_self_test", "open_detector", "self_test"]

SELF_TEST_FILE = "detector-self-test.json"
KNOWN_SELF_TESTS: Mapping[str, Sequence[Mapping[str, Any]]] = {}
"""Detections on the fixed picture that mmdet itself gave, by digest of the checkpoint; none is known yet."""

_NUM_COMPARED = 10
_SCORE_TOLERANCE, _BOX_TOLERANCE_PX = 1e-3, 1.0


class PhotoDetector:
    """Find the instances of COCO's classes in photographs and name their colours."""

    def __init__(
        self,
        network: DetectorNetwork,
        color_classifier: ColorClassifier | None = None,
        *,
        min_score: float = 0.0,
        batch_size: int | None = None,
        class_names: Sequence[str] = OBJECT_NAMES,
    ) -> None:
        """Take loaded networks.

        Args:
            network: The detector proper, in evaluation mode, on its device.
            color_classifier: Names colours; None where none are asked for.
            min_score: Instances whose score cannot exceed it may be left out of what `detect` returns.
            batch_size: Images in one pass; None for 8, and on a CPU 1, which is faster there: more outgrow its caches.
            class_names: Names of the classes, in order.
        """
        self.network, self.color_classifier = network, color_classifier
        self.device = next(network.parameters()).device
        self.batch_size = batch_size or (1 if self.device.type == "cpu" else 8)
        self.min_score, self.class_names = min_score, tuple(class_names)
        self.record: dict[str, Any] = {"detector": "mask2former (transformers)", "device": str(self.device)}

    def detect(self, images: Sequence[Image.Image]) -> list[list[Detection]]:
        """Return the instances of each image, all those whose score exceeds `min_score` among them."""
        prepared = [prepare(image, self.network.config) for image in images]
        found: dict[int, list[Detection]] = {}
        by_size: dict[tuple[int, ...], list[int]] = {}
        for index, image in enumerate(prepared):
            by_size.setdefault(image.pixels.shape, []).append(index)
        for indices in by_size.values():
            for start in range(0, len(indices), self.batch_size):
                batch = indices[start : start + self.batch_size]
                found.update(zip(batch, self._detect_batch([prepared[index] for index in batch]), strict=True))
        return [found[index] for index in range(len(images))]

    def colors(self, image: Image.Image, detections: Sequence[Detection]) -> list[str]:
        """Return the colour of each detection."""
        (named,) = self.grouped_colors([(image, detections)])
        return named

    def grouped_colors(self, groups: Sequence[tuple[Image.Image, Sequence[Detection]]]) -> list[list[str]]:
        """Return the colours of several images' detections, all crops together.

        Raises:
            ValueError: If there is no colour classifier.
        """
        if self.color_classifier is None:
            raise ValueError("This detector was opened without a colour classifier.")
        from segros_eval.benchmarks.geneval.detector.colors import named_colors

        return named_colors(self.color_classifier, groups)

    @torch.inference_mode()
    def _detect_batch(self, batch: Sequence[Prepared]) -> list[list[Detection]]:
        pixels = normalised(batch, self.network.config, self.device)
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            class_logits, mask_logits = self.network(pixels)
        return [
            self._detections(classes, masks, image)
            for classes, masks, image in zip(class_logits, mask_logits, batch, strict=True)
        ]

    def _detections(self, class_logits: torch.Tensor, mask_logits: torch.Tensor, image: Prepared) -> list[Detection]:
        instances = select_instances(
            class_logits,
            mask_logits,
            image,
            max_per_image=self.network.config.max_per_image,
            min_score=self.min_score,
        )
        labels, scores, boxes = instances.labels.tolist(), instances.scores.tolist(), instances.boxes.tolist()
        masks = instances.masks.cpu().numpy()
        return [
            Detection(self.class_names[label], (box[0], box[1], box[2], box[3]), score, mask)
            for label, box, score, mask in zip(labels, boxes, scores, masks, strict=True)
        ]


def open_detector(*, min_score: float = 0.0, device: str | None = None) -> PhotoDetector:
    """Load the official weights and test them.

    Args:
        min_score: See `PhotoDetector`.
        device: Torch device; None for the best there is.

    Raises:
        PrerequisiteError: If weights are missing, damaged or of other content, or the self-test fails.
    """
    from segros_eval.benchmarks.geneval.detector.colors import ColorClassifier, load_clip

    checkpoint, clip = detector_files()
    digest = checked_checkpoint(checkpoint)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    network = load_network(checkpoint).to(device)
    detector = PhotoDetector(network, ColorClassifier(load_clip(clip).to(device)), min_score=min_score)
    verified = check_self_test(network, digest=digest, record=checkpoint.parent / SELF_TEST_FILE)
    detector.record |= {"checkpoint": digest, "self_test": "verified" if verified else "unverified"}
    return detector


def self_test(network: DetectorNetwork) -> list[dict[str, Any]]:
    """Return what a network finds on the fixed picture: the best instances with label index, score and box."""
    names = [str(index) for index in range(network.config.num_classes)]
    (found,) = PhotoDetector(network, class_names=names).detect([_test_picture()])
    best = sorted(found, key=lambda detection: (-detection.score, detection.label))[:_NUM_COMPARED]
    return [{"label": int(one.label), "score": round(one.score, 6), "box": list(one.box)} for one in best]


def check_self_test(network: DetectorNetwork, *, digest: str, record: Path) -> bool:
    """Compare what a network finds on the fixed picture with what it should find, or found before.

    Args:
        network: The network.
        digest: Of its weights.
        record: File of the first findings by digest; written where it has none of these weights.

    Returns:
        Whether mmdet's own findings are known for these weights, and are the same.

    Raises:
        PrerequisiteError: If it finds something else.
    """
    found = self_test(network)
    known = KNOWN_SELF_TESTS.get(digest)
    recorded = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
    expected = known or recorded.get(digest)
    if expected is None:
        write_json(record, {**recorded, digest: found})
        return False
    odd = [one for one in expected if not any(_alike(one, other) for other in found)]
    if odd:
        raise PrerequisiteError(
            f"GenEval's detector fails its self-test: of {len(expected)} instances known on a fixed picture it does "
            f"not find {len(odd)}, e.g. class {odd[0]['label']} with score {odd[0]['score']}",
            f"Its numbers would not be "
            f"GenEval's. Go back to the versions that {record} was written with, or delete that file to record anew.",
        )
    return known is not None


def _alike(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    near = max(abs(x - y) for x, y in zip(a["box"], b["box"], strict=True)) <= _BOX_TOLERANCE_PX
    return bool(a["label"] == b["label"] and abs(a["score"] - b["score"]) <= _SCORE_TOLERANCE and near)


def _test_picture() -> Image.Image:
    """Paint a picture that any machine paints alike: a road scene of plain shapes, 480 by 640 pixels."""
    y, x = np.mgrid[0:480, 0:640]
    picture = np.stack([120 + y // 8, 160 + y // 16, 220 - y // 4], axis=2).astype(np.uint8)
    picture[y > 320] = (90, 92, 96)
    picture[(x - 480) ** 2 + (y - 150) ** 2 < 70**2] = (200, 30, 36)
    picture[(abs(x - 480) < 6) & (y > 220) & (y < 400)] = (70, 70, 70)
    picture[(abs(x - 200) < 130) & (abs(y - 330) < 45)] = (30, 80, 190)
    picture[(abs(x - 200) < 70) & (abs(y - 270) < 30)] = (180, 210, 230)
    for centre in (120, 280):
        picture[(x - centre) ** 2 + (y - 380) ** 2 < 30**2] = (20, 20, 20)
    return Image.fromarray(picture)
