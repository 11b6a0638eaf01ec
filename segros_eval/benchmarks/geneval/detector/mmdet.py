"""The detector as mmdet 3.x runs it, in an environment of its own: the reference that the other path is checked with.

mmdet pins old versions of torch and numpy, so it is a process of its own, which is sent pictures and sends instances
back. It pre-processes a little differently than mmdet 2.x, which GenEval means: it resizes in floating point, and pads
after normalisation.

Source: open-mmlab/mmdetection v3.3.0, mmdet/apis/inference.py.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from segros_eval.benchmarks.base import Detection
from segros_eval.benchmarks.geneval.detector.files import checked_checkpoint, detector_files
from segros_eval.benchmarks.geneval.rules import OBJECT_NAMES
from segros_train.errors import PrerequisiteError
from segros_train.files import segros_home

__all__ = ["MmdetDetector", "environment", "missing_environment", "open_reference_detector"]

CONFIG = "mask2former_swin-s-p4-w7-224_8xb2-lsj-50e_coco"
WORKER = Path(__file__).parent / "mmdet_worker.py"


class MmdetDetector:
    """Find instances with mmdet in a process of its own; colours are named here."""

    def __init__(self, python: Path, checkpoint: Path, colors: Any, *, config: str = CONFIG) -> None:
        """Start the process.

        Args:
            python: Interpreter of mmdet's environment.
            checkpoint: The official weights, as published for mmdet 2.x or 3.x.
            colors: Names colours, as `PhotoDetector.grouped_colors`.
            config: Configuration's name in mmdet's model index, or its file.

        Raises:
            PrerequisiteError: If it does not start, or the weights are missing or damaged.
        """
        self._colors = colors
        self.record: dict[str, Any] = {"detector": f"mmdet 3.x ({config})"}
        with tempfile.TemporaryDirectory() as folder:
            self._process = subprocess.Popen(
                # Isolated: else the folder of the worker comes first, and this module for the package `mmdet`.
                [str(python), "-I", str(WORKER), config, str(_in_names_of_3x(checkpoint, Path(folder)))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            self.record |= self._exchange({})

    def detect(self, images: Sequence[Image.Image]) -> list[list[Detection]]:
        """Return the instances of each image.

        Raises:
            PrerequisiteError: If the process has ended.
        """
        found = []
        with tempfile.TemporaryDirectory() as folder:
            for image in images:
                picture, result = Path(folder) / "picture.png", Path(folder) / "result.npz"
                image.convert("RGB").save(picture, compress_level=1)
                self._exchange({"image": str(picture), "result": str(result)})
                with np.load(result) as arrays:
                    found.append(_detections(arrays))
        return found

    def colors(self, image: Image.Image, detections: Sequence[Detection]) -> list[str]:
        """Return the colour of each detection."""
        (named,) = self._colors.grouped_colors([(image, detections)])
        return list(named)

    def close(self) -> None:
        """End the process."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait(timeout=30)

    def _exchange(self, message: dict[str, str]) -> dict[str, Any]:
        """Send a message and wait for its answer."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        try:
            stdin.write(json.dumps(message) + "\n")
            stdin.flush()
            answer = stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            raise PrerequisiteError(
                f"mmdet's process ended with code {self._process.wait()}; what it said stands above",
                f"Build its environment anew: `nox -s mmdet` in a checkout, into {environment()}.",
            )
        return dict(json.loads(answer))


def environment() -> Path:
    """Return where mmdet's environment lies, or would."""
    return segros_home() / "mmdet" / "environment"


def missing_environment() -> str:
    """Say what to do for mmdet's environment; empty where it is there."""
    if (environment() / "bin" / "python").is_file():
        return ""
    return f"Build it with `nox -s mmdet` in a checkout, into {environment()}, or leave detector at transformers."


def open_reference_detector(*, min_score: float = 0.0) -> MmdetDetector:
    """Start mmdet with the official weights.

    Args:
        min_score: Taken so that both detectors open alike; mmdet returns everything.

    Raises:
        PrerequisiteError: If the environment or weights are missing.
    """
    from segros_eval.benchmarks.geneval.detector.colors import ColorClassifier, load_clip

    if remedy := missing_environment():
        raise PrerequisiteError("There is no environment of mmdet", remedy)
    checkpoint, clip = detector_files()
    digest = checked_checkpoint(checkpoint)
    detector = MmdetDetector(environment() / "bin" / "python", checkpoint, _Colors(ColorClassifier(load_clip(clip))))
    detector.record["checkpoint"] = digest
    return detector


class _Colors:
    """Name colours by a classifier's logits."""

    def __init__(self, classifier: Any) -> None:
        self.classifier = classifier

    def grouped_colors(self, groups: Sequence[tuple[Image.Image, Sequence[Detection]]]) -> list[list[str]]:
        from segros_eval.benchmarks.geneval.detector.colors import named_colors

        return named_colors(self.classifier, groups)


def _in_names_of_3x(checkpoint: Path, folder: Path) -> Path:
    """Write the weights of a checkpoint as mmdet 3.x names them; mmdet drops what it does not know, with a warning.

    A pickle is opened here alone: the old torch of mmdet's environment has no reader of them that is safe.
    """
    from safetensors.torch import save_file

    from segros_eval.benchmarks.geneval.detector.weights import read_checkpoint, to_mmdet_3

    state = to_mmdet_3(read_checkpoint(checkpoint))
    save_file({name: tensor.clone().contiguous() for name, tensor in state.items()}, folder / "weights.safetensors")
    return folder / "weights.safetensors"


def _detections(arrays: Any) -> list[Detection]:
    return [
        Detection(OBJECT_NAMES[int(label)], (box[0], box[1], box[2], box[3]), float(score), mask)
        for label, score, box, mask in zip(
            arrays["labels"], arrays["scores"], arrays["boxes"].tolist(), arrays["masks"], strict=True
        )
    ]
