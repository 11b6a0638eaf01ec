"""Read an image of the embedded world back: objects, colours, positions, by geometry alone.

Objects stand out from the background by saturation, or by being nearly black or white. Each connected
component of such pixels is one object: its colour is the palette's nearest to the component's median, its
coverage how far each pixel lies on the way from the background's colour to the object's, its shape the one
whose template covers the same pixels best (intersection over union of coverages after scaling to one size).
The agreement with the template is the confidence, so a smeared or merged blob scores low.

`SceneReader` is the detector of the embedded world, in the place of Mask2Former and CLIP for photographs.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from segros_eval.benchmarks.base import Detection
from segros_train.data.shapes.world import CELL_PX, COLORS, OBJECT_NAMES, shape_alpha

__all__ = ["SceneReader", "SeenObject", "read_scene"]

_MIN_CHROMA = 62
_MAX_DARK = 66
_MIN_BRIGHT = 204
_MIN_AREA_PX = 14
_TEMPLATE_PX = 14
_TEMPLATE_SIZES = (10, 11, 12, 13, 14)
_TEMPLATE_LEVELS = (0.3, 0.5, 0.7)
_TEMPLATE_BLURS_PX = (0.0, 0.7)
_SIDE_PX = (6, 18)
_CERTAIN, _HOPELESS = 0.84, 0.55


@dataclass(frozen=True)
class SeenObject:
    """One object found in an image.

    Attributes:
        shape: Best matching shape.
        color: Nearest colour of the palette.
        row: Row of the cell its centre lies in.
        column: Column of the cell its centre lies in.
        box: x0, y0, x1, y1 in pixels, the far edges exclusive.
        score: Confidence in [0, 1], from the agreement with the shape's template.
        mask: [height, width] bool, its pixels.
    """

    shape: str
    color: str
    row: int
    column: int
    box: tuple[float, float, float, float]
    score: float
    mask: NDArray[np.bool_]


def _fit(mask: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale a tight mask to the templates' square, its aspect kept, centred."""
    scale = _TEMPLATE_PX / max(mask.shape)
    size = tuple(max(1, round(side * scale)) for side in mask.shape)
    scaled = cv2.resize(mask, size[::-1], interpolation=cv2.INTER_AREA if scale <= 1 else cv2.INTER_LINEAR)
    canvas = np.zeros((_TEMPLATE_PX, _TEMPLATE_PX), np.float32)
    top, left = ((_TEMPLATE_PX - side) // 2 for side in size)
    canvas[top : top + size[0], left : left + size[1]] = scaled
    return canvas


def _tight(coverage: NDArray[np.float32], level: float = 0.5) -> NDArray[np.float32]:
    inside = coverage > level
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    if not rows.size:
        return coverage
    return coverage[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


@functools.cache
def _templates() -> tuple[tuple[str, ...], NDArray[np.float32]]:
    """Return shape names and their masks, [templates, pixels]."""
    names, masks = [], []
    for shape in OBJECT_NAMES:
        for size, level, blur in product(_TEMPLATE_SIZES, _TEMPLATE_LEVELS, _TEMPLATE_BLURS_PX):
            coverage = np.pad(shape_alpha(shape, size)[:, :, 0], 3)
            if blur:
                coverage = cv2.GaussianBlur(coverage, (0, 0), blur).astype(np.float32)
            names.append(shape)
            masks.append(_fit(_tight(coverage / coverage.max(), level)).ravel())
    return tuple(names), np.stack(masks)


def _match(coverage: NDArray[np.float32]) -> tuple[str, float]:
    """Return the best shape and its intersection over union."""
    names, templates = _templates()
    found = _fit(_tight(coverage)).ravel()
    overlap = np.minimum(templates, found).sum(axis=1) / np.maximum(templates, found).sum(axis=1)
    best = int(overlap.argmax())
    return names[best], float(overlap[best])


def _core(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the pixels of a mask away from its edge, or the mask where it is too thin to have any."""
    core = cv2.erode(mask.astype(np.uint8), np.ones((2, 2), np.uint8)).astype(bool)
    return core if core.sum() >= _MIN_AREA_PX // 2 else mask


def _coverage(pixels: NDArray[np.uint8], mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return how much of each pixel an object covers, [height, width] in [0, 1], near its mask."""
    near = cv2.dilate(mask.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)
    around = cv2.dilate(near.astype(np.uint8), np.ones((5, 5), np.uint8)).astype(bool) & ~near
    behind = np.median(pixels[around], axis=0) if around.any() else np.full(3, 128.0)
    way = np.median(pixels[_core(mask)], axis=0) - behind
    along = (pixels.astype(np.float32) - behind) @ way / max(float(way @ way), 1.0)
    return (np.clip(along, 0, 1) * near).astype(np.float32)


def _nearest_color(pixels: NDArray[np.uint8]) -> str:
    """Return the palette's colour nearest to the median of [pixels, 3]."""
    palette = np.array(list(COLORS.values()), np.float32)
    distance = np.linalg.norm(palette - np.median(pixels, axis=0), axis=1)
    return tuple(COLORS)[int(distance.argmin())]


def _foreground(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    high, low = pixels.max(axis=2), pixels.min(axis=2)
    return ((high - low > _MIN_CHROMA) | (high < _MAX_DARK) | (low > _MIN_BRIGHT)).astype(np.uint8)


def read_scene(image: Image.Image) -> list[SeenObject]:
    """Find the objects of an image of the embedded world, in raster order of their boxes.

    Args:
        image: A picture of any mode; its size is the world's or a multiple that keeps `CELL_PX` pixels a cell.
    """
    pixels = np.asarray(image.convert("RGB"))
    count, labels, stats, centres = cv2.connectedComponentsWithStats(_foreground(pixels), connectivity=4)
    found = []
    for index in range(1, count):
        left, top, width, height, area = (int(value) for value in stats[index])
        if area < _MIN_AREA_PX:
            continue
        rows, columns = slice(max(0, top - 4), top + height + 4), slice(max(0, left - 4), left + width + 4)
        window, mask = pixels[rows, columns], labels == index
        shape, overlap = _match(_coverage(window, mask[rows, columns]))
        score = float(np.clip((overlap - _HOPELESS) / (_CERTAIN - _HOPELESS), 0, 1))
        if not _SIDE_PX[0] <= max(width, height) <= _SIDE_PX[1]:
            score *= 0.25
        column, row = (int(value // CELL_PX) for value in centres[index])
        box = (float(left), float(top), float(left + width), float(top + height))
        color = _nearest_color(window[_core(mask[rows, columns])])
        found.append(SeenObject(shape, color, row, column, box, score, mask))
    return found


class SceneReader:
    """The detector of the embedded world."""

    def detect(self, images: Sequence[Image.Image]) -> list[list[Detection]]:
        """Return every object of each image as a detection labelled with its shape."""
        return [
            [Detection(seen.shape, seen.box, seen.score, seen.mask) for seen in read_scene(image)] for image in images
        ]

    def colors(self, image: Image.Image, detections: Sequence[Detection]) -> list[str]:
        """Return the palette colour nearest to each detection's pixels."""
        pixels = np.asarray(image.convert("RGB"))
        return [_nearest_color(pixels[_core(found.mask)]) for found in detections]
