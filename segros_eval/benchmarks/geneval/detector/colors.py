"""GenEval's colour classifier: a CLIP model names the colour of each object from its masked crop.

Of an object only the pixels of its mask stay, the rest becomes grey; the crop of its box goes through CLIP's own
preprocessing. A class and a colour are described by three texts whose mean direction is the colour's column; the
colour is the column with the largest cosine.

Source: djghosh13/geneval@af4902f, evaluation/evaluate_images.py (ImageCrops, color_classification);
LAION-AI/CLIP_benchmark 1.4.0, metrics/zeroshot_classification.py. Upstream runs both towers under CUDA's fp16
autocast, we in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch import Tensor

from segros_eval.benchmarks.base import Detection
from segros_eval.benchmarks.geneval.detector.files import CLIP_SHA256
from segros_eval.benchmarks.geneval.rules import COLORS
from segros_train.errors import PrerequisiteError
from segros_train.files import file_sha256

__all__ = ["TEMPLATES", "ColorClassifier", "load_clip", "named_colors"]

MODEL = "ViT-L-14-quickgelu"
TEMPLATES = ("a photo of a {color} {label}", "a photo of a {color}-colored {label}", "a photo of a {color} object")
_GREY = "#999"
_LOGIT_SCALE = 100.0
_CROPS_AT_ONCE = 64


class ColorClassifier:
    """Name colours with a CLIP model."""

    def __init__(self, clip: Any, *, background: str = _GREY, crop: bool = True) -> None:
        """Take a model.

        Args:
            clip: A CLIP model of open_clip, in evaluation mode.
            background: Colour outside the mask; `"original"` leaves the picture as it is.
            crop: Whether to cut out the box.
        """
        self.clip, self.background, self.crop = clip, background, crop
        self.device = next(clip.parameters()).device
        side = clip.visual.image_size
        self._transform = image_transform_v2(
            PreprocessCfg(size=side, interpolation="bicubic", resize_mode="shortest"), is_train=False
        )
        self._tokenizer = open_clip.SimpleTokenizer(context_length=clip.context_length)
        self._columns: dict[str, Tensor] = {}

    def pixels(self, image: Image.Image, detections: Sequence[Detection]) -> Tensor:
        """Return the preprocessed crop of each detection, [K, 3, side, side].

        Args:
            image: Upright RGB picture.
            detections: Boxes within it; one without a mask keeps its surroundings.
        """
        return torch.stack([self._transform(self._cut(image, found)) for found in detections])

    def columns(self, label: str) -> Tensor:
        """Return the directions of a class's colours, [D, colours]; kept once computed."""
        if label not in self._columns:
            texts = [template.format(color=color, label=label) for color in COLORS for template in TEMPLATES]
            with torch.inference_mode():
                features = self.clip.encode_text(self._tokenizer(texts).to(self.device), normalize=True)
            means = features.unflatten(0, (len(COLORS), len(TEMPLATES))).mean(1)
            self._columns[label] = (means / means.norm(dim=-1, keepdim=True)).T
        return self._columns[label]

    def logits(self, image: Image.Image, detections: Sequence[Detection]) -> Tensor:
        """Return 100 times the cosine of each detection with its class's colours, [K, colours]."""
        (found,) = self.grouped_logits([(image, detections)])
        return found

    def grouped_logits(self, groups: Sequence[tuple[Image.Image, Sequence[Detection]]]) -> list[Tensor]:
        """Return the logits of several images' detections, whose crops go through the network together.

        Args:
            groups: Picture and detections of each.

        Returns:
            [K, colours] per group.
        """
        flat = [(image, found) for image, detections in groups for found in detections]
        rows: list[Tensor] = []
        for start in range(0, len(flat), _CROPS_AT_ONCE):
            part = flat[start : start + _CROPS_AT_ONCE]
            pixels = torch.cat([self.pixels(image, [found]) for image, found in part]).to(self.device)
            with torch.inference_mode():
                features = self.clip.encode_image(pixels, normalize=True)
            rows += [
                _LOGIT_SCALE * feature @ self.columns(found.label)
                for feature, (_, found) in zip(features, part, strict=True)
            ]
        whole = torch.stack(rows) if rows else torch.zeros((0, len(COLORS)))
        return list(whole.split([len(detections) for _, detections in groups]))

    def _cut(self, image: Image.Image, found: Detection) -> Image.Image:
        if self.background != "original" and found.mask is not None:
            ground = Image.new("RGB", image.size, color=self.background)
            image = Image.composite(image, ground, Image.fromarray(found.mask))
        if self.crop:
            x0, y0, x1, y1 = (round(float(side)) for side in found.box)
            image = image.crop((x0, y0, x1, y1))
        return image


def named_colors(
    classifier: ColorClassifier, groups: Sequence[tuple[Image.Image, Sequence[Detection]]]
) -> list[list[str]]:
    """Return the colour of each detection of several images, all crops together.

    Args:
        classifier: Gives logits.
        groups: Picture and detections of each.
    """
    return [
        [COLORS[int(index)] for index in logits.argmax(1)] if len(logits) else []
        for logits in classifier.grouped_logits(groups)
    ]


def load_clip(path: Path, *, sha256: str = CLIP_SHA256) -> Any:
    """Load OpenAI's ViT-L/14 from its published archive, in float32.

    The archive is a program, which torch runs while it reads: only the published one, to the last bit, is opened.

    Args:
        path: The `.pt` file as OpenAI published it.
        sha256: Digest that it must have, whole.

    Raises:
        PrerequisiteError: If it is missing, of another digest or another model.
    """
    if not path.is_file():
        raise PrerequisiteError(
            f"The weights of {MODEL} are missing: {path} does not exist",
            "Get them with `segros data fetch geneval`.",
        )
    if (digest := file_sha256(path)) != sha256:
        raise PrerequisiteError(
            f"{path} is damaged or not the model {MODEL}: its sha256 is {digest}, expected {sha256}",
            "Fetch it again with `segros data fetch geneval`.",
        )
    try:
        state = torch.jit.load(str(path), map_location="cpu").state_dict()
    except RuntimeError as error:
        raise PrerequisiteError(
            f"{path} cannot be read: {error}",
            "Fetch it again with `segros data fetch geneval`.",
        ) from error
    state = {name: tensor.float() for name, tensor in state.items() if name not in _ARCHIVE_ONLY}
    clip = open_clip.create_model(MODEL)
    try:
        clip.load_state_dict(state)
    except RuntimeError as error:
        raise PrerequisiteError(
            f"{path} is not the model {MODEL}: {error}",
            "Fetch it again with `segros data fetch geneval`.",
        ) from error
    return clip.eval().requires_grad_(False)


_ARCHIVE_ONLY = ("input_resolution", "context_length", "vocab_size")
