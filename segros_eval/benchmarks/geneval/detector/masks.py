"""What mmdet does to an image before its Mask2Former, and to the network's logits after it.

Before: OpenCV's bilinear resize on bytes (so that levels are rounded), padding to a multiple of 32 with grey 128, then
normalisation. After: the best pairs of query and class; each pair's mask logits brought to the image's own size; a
pair's score is its class probability times the mean sigmoid within its mask, its box the mask's extent.

A score never exceeds its class probability, so a pair whose probability does not pass the threshold is dropped before
its mask is enlarged, and no detection above the threshold changes.

Source: open-mmlab/mmdetection v2.28.2, mmdet/apis/inference.py, mmdet/datasets/pipelines,
mmdet/models/seg_heads/panoptic_fusion_heads/maskformer_fusion_head.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

from segros_eval.benchmarks.geneval.detector.weights import DetectorConfig

__all__ = ["Instances", "Prepared", "normalised", "prepare", "select_instances"]

_EPSILON = 1e-6
_MASKS_AT_ONCE = 4


@dataclass(frozen=True)
class Prepared:
    """An image ready for the network.

    Attributes:
        pixels: [height, width, 3] RGB bytes, resized and padded.
        resized: Height and width after resizing.
        original: Height and width of the image.
    """

    pixels: NDArray[np.uint8]
    resized: tuple[int, int]
    original: tuple[int, int]


@dataclass(frozen=True)
class Instances:
    """The instances of an image, in descending order of class probability.

    Attributes:
        labels: [K] class indices.
        scores: [K] float32.
        boxes: [K, 4] x0, y0, x1, y1 in pixels of the image, the far edges exclusive; zeros for an empty mask.
        masks: [K, height, width] bool.
    """

    labels: Tensor
    scores: Tensor
    boxes: Tensor
    masks: Tensor


def prepare(image: Image.Image, config: DetectorConfig) -> Prepared:
    """Resize and pad an RGB image.

    Args:
        image: Upright, of any size.
        config: Scale and padding.
    """
    pixels = np.asarray(image.convert("RGB"))
    height, width = pixels.shape[:2]
    largest, smallest = config.image_scale_px
    scale = min(largest / max(height, width), smallest / min(height, width))
    size = (int(height * scale + 0.5), int(width * scale + 0.5))
    # OpenCV resizes each channel alike, so the order of the channels does not matter.
    resized = np.asarray(cv2.resize(pixels, size[::-1], interpolation=cv2.INTER_LINEAR), dtype=np.uint8)
    below, beside = (-side % config.pad_divisor for side in size)
    padded = np.pad(resized, ((0, below), (0, beside), (0, 0)), constant_values=config.pad_value)
    return Prepared(padded, size, (height, width))


def normalised(images: Sequence[Prepared], config: DetectorConfig, device: torch.device) -> Tensor:
    """Return the images as one batch of pixels, [B, 3, height, width] float32.

    Args:
        images: Of one padded size.
        config: Mean and deviation.
        device: Where the batch goes.
    """
    batch = torch.from_numpy(np.stack([image.pixels for image in images])).to(device)
    mean, std = (torch.tensor(values, device=device) for values in (config.mean, config.std))
    return ((batch.float() - mean) / std).permute(0, 3, 1, 2).contiguous()


def select_instances(
    class_logits: Tensor, mask_logits: Tensor, image: Prepared, *, max_per_image: int, min_score: float
) -> Instances:
    """Turn the logits of one image into instances.

    Args:
        class_logits: [Q, C + 1], the last class being "none".
        mask_logits: [Q, height / 4, width / 4] of the padded image.
        image: What the network saw.
        max_per_image: Most candidates.
        min_score: Candidates whose class probability does not exceed it are left out; 0 keeps all.
    """
    probabilities = class_logits.float().softmax(-1)[:, :-1]
    num_classes = probabilities.shape[1]
    best, places = probabilities.flatten().topk(min(max_per_image, probabilities.numel()))
    if min_score > 0:
        passing = best > np.float32(min_score).item()
        best, places = best[passing], places[passing]
    queries, labels = places // num_classes, places % num_classes
    # Classes of one query share its mask.
    unique, inverse = queries.unique(return_inverse=True)
    parts = [_measured(mask_logits[part], image) for part in unique.split(_MASKS_AT_ONCE)]
    masks, means, boxes = (torch.cat(column)[inverse] for column in zip(*parts, strict=True))
    return Instances(labels, best * means, boxes, masks)


def _measured(mask_logits: Tensor, image: Prepared) -> tuple[Tensor, Tensor, Tensor]:
    """Return masks [K, height, width] of the image's own size, their mean sigmoids [K] and their boxes [K, 4]."""
    if not len(mask_logits):
        empty = mask_logits.new_zeros((0, *image.original), dtype=torch.bool)
        return empty, mask_logits.new_zeros(0), _boxes(empty)
    padded = image.pixels.shape[:2]
    logits = functional.interpolate(mask_logits[None].float(), size=padded, mode="bilinear")[0]
    logits = logits[:, : image.resized[0], : image.resized[1]]
    if tuple(logits.shape[-2:]) != image.original:
        logits = functional.interpolate(logits[None], size=image.original, mode="bilinear")[0]
    masks = logits > 0
    area = masks.flatten(1).sum(1, dtype=torch.float32)
    inside = (logits.sigmoid() * masks).flatten(1).sum(1)
    return masks, inside / (area + _EPSILON), _boxes(masks)


def _boxes(masks: Tensor) -> Tensor:
    """Return the extents of [K, height, width] masks, [K, 4] float32."""
    boxes = masks.new_zeros((len(masks), 4), dtype=torch.float32)
    for place, (side, other) in enumerate(((1, 2), (2, 1))):
        seen = masks.any(dim=side).to(torch.uint8)
        boxes[:, place] = seen.argmax(1)
        boxes[:, place + 2] = masks.shape[other] - seen.flip(1).argmax(1)
    boxes[~masks.flatten(1).any(1)] = 0
    return boxes
