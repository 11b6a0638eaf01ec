"""Scenes of the embedded world: coloured shapes on textured, cluttered backgrounds.

A scene is a set of objects on a grid of `GRID` x `GRID` cells of `CELL_PX` pixels. Each object lies within
one cell, two objects never in neighbouring cells, so that a scene can be read back exactly
(`segros_eval/shapes/reader.py`) and one latent cell holds one object. Backgrounds carry a smooth texture and
clutter of low saturation: pixels that no caption speaks of.

Everything is a pure function of (seed, index): the same pair always gives the same scene and image.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = [
    "CELL_PX",
    "COLORS",
    "GRID",
    "IMAGE_PX",
    "OBJECT_NAMES",
    "RELATIONS",
    "TAGS",
    "WORLD_VERSION",
    "Scene",
    "SceneObject",
    "Tag",
    "background",
    "centre_px",
    "crowded_scene",
    "direction",
    "matching_crowd",
    "render",
    "sample_scene",
    "shape_alpha",
    "spread_scene",
]

WORLD_VERSION = 1
"""Raised when a scene, a caption, a prompt or a question of any seed changes."""
CELL_PX = 16
GRID = 6
IMAGE_PX = CELL_PX * GRID

Tag = Literal["single_object", "two_object", "counting", "colors", "position", "color_attr"]
TAGS: tuple[Tag, ...] = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
"""GenEval's six tags, in the official order."""

OBJECT_NAMES = ("circle", "square", "triangle", "diamond", "cross", "ring", "heart", "bar")
RELATIONS = ("left of", "right of", "above", "below")

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (214, 30, 38),
    "orange": (255, 140, 0),
    "yellow": (250, 222, 40),
    "green": (40, 160, 60),
    "blue": (38, 84, 224),
    "purple": (132, 46, 186),
    "pink": (255, 128, 196),
    "brown": (126, 68, 24),
    "black": (18, 18, 18),
    "white": (246, 246, 246),
}
"""GenEval's ten colours, in the official order, as RGB."""

_TAG_SHARES = (0.14, 0.14, 0.22, 0.12, 0.2, 0.18)
_SIZES_PX = (10, 11, 12, 13, 14)
_COLOR_JITTER = 9
_SUPERSAMPLING = 8
_MAX_COUNT = 4


@dataclass(frozen=True)
class SceneObject:
    """One object of a scene.

    Attributes:
        shape: One of `OBJECT_NAMES`.
        color: One of `COLORS`.
        row: Row of its cell, 0 at the top.
        column: Column of its cell, 0 at the left.
        size_px: Side of the square its outline fits.
        offset_px: (x, y) of that square's top left corner in the cell.
        rgb: The colour as painted, near the palette's.
    """

    shape: str
    color: str
    row: int
    column: int
    size_px: int
    offset_px: tuple[int, int]
    rgb: tuple[int, int, int]


@dataclass(frozen=True)
class Scene:
    """Objects, the tag their caption is about, and the seed of the background.

    `objects[0]` and `objects[1]` are the first and second thing the caption names.
    """

    tag: Tag
    objects: tuple[SceneObject, ...]
    relation: str | None
    background_seed: tuple[int, int]


def _outline(shape: str, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Tell which points of [-1, 1]^2 (y downwards) lie within a shape."""
    radius = np.hypot(x, y)
    match shape:
        case "circle":
            return radius <= 1
        case "square":
            return np.maximum(abs(x), abs(y)) <= 0.94
        case "triangle":
            return (y <= 0.9) & (abs(x) <= (y + 1.0) * 0.52)
        case "diamond":
            return abs(x) + abs(y) <= 1
        case "cross":
            return ((abs(x) <= 0.34) | (abs(y) <= 0.34)) & (np.maximum(abs(x), abs(y)) <= 1)
        case "ring":
            return (radius <= 1) & (radius >= 0.5)
        case "heart":
            lobes = np.hypot(abs(x) - 0.5, y + 0.42) <= 0.52
            return lobes | ((y > -0.42) & (abs(x) <= 0.98 - (y + 0.36) * 0.74) & (y <= 0.95))
        case "bar":
            return (abs(x) <= 1) & (abs(y) <= 0.38)
    raise ValueError(f"No shape {shape!r}; there are {', '.join(OBJECT_NAMES)}.")


@functools.cache
def shape_alpha(shape: str, size_px: int) -> NDArray[np.float32]:
    """Return the coverage of a shape in a square of `size_px`, [size_px, size_px, 1] in [0, 1]; do not write to it."""
    fine = (np.arange(size_px * _SUPERSAMPLING) + 0.5) / (size_px * _SUPERSAMPLING) * 2 - 1
    inside = _outline(shape, fine[None, :], fine[:, None])
    blocks = inside.reshape(size_px, _SUPERSAMPLING, size_px, _SUPERSAMPLING)
    return blocks.mean(axis=(1, 3), dtype=np.float32)[:, :, None]


@functools.cache
def _smoothing(knots: int) -> NDArray[np.float32]:
    """Return [IMAGE_PX, knots] weights of linear interpolation between knots."""
    position = np.linspace(0, knots - 1, IMAGE_PX)
    return np.maximum(0, 1 - abs(position[:, None] - np.arange(knots))).astype(np.float32)


def background(rng: np.random.Generator) -> NDArray[np.float32]:
    """Paint a textured, cluttered background, [IMAGE_PX, IMAGE_PX, 3] in 0..255, of low saturation."""
    base = rng.uniform(112, 158) + rng.uniform(-9, 9, 3)
    weights = _smoothing(5)
    texture = np.einsum("yk,klc,xl->yxc", weights, rng.uniform(-14, 14, (5, 5, 1)), weights, optimize=True)
    canvas = (base + texture).astype(np.float32)
    marks = rng.integers(6, 15)
    places = rng.integers(0, IMAGE_PX, (marks, 2))
    extents = np.where(rng.random((marks, 1)) < 0.5, rng.integers(1, 5, (marks, 2)), rng.integers(2, 16, (marks, 2)))
    extents[:, 1] = np.where(extents.max(axis=1) > 4, rng.integers(1, 3, marks), extents[:, 1])
    flips = rng.random(marks) < 0.5
    tones = rng.uniform(-26, 26, marks)
    for (row, column), (long, short), flip, tone in zip(places, extents, flips, tones, strict=True):
        height, width = (long, short) if flip else (short, long)
        canvas[row : row + height, column : column + width] += tone
    return canvas


def render(scene: Scene) -> Image.Image:
    """Paint a scene as an RGB image of IMAGE_PX x IMAGE_PX."""
    canvas = background(np.random.default_rng(scene.background_seed))
    for thing in scene.objects:
        alpha = shape_alpha(thing.shape, thing.size_px)
        top = thing.row * CELL_PX + thing.offset_px[1]
        left = thing.column * CELL_PX + thing.offset_px[0]
        window = canvas[top : top + thing.size_px, left : left + thing.size_px]
        window += alpha * (np.asarray(thing.rgb, np.float32) - window)
    return Image.fromarray(np.clip(canvas + 0.5, 0, 255).astype(np.uint8))


def _neighbours(a: tuple[int, int], b: tuple[int, int]) -> bool:
    return max(abs(a[0] - b[0]), abs(a[1] - b[1])) < 2


def _free_cells(rng: np.random.Generator, count: int) -> list[tuple[int, int]]:
    """Draw cells of which no two touch."""
    while True:
        cells: list[tuple[int, int]] = []
        for place in rng.permutation(GRID * GRID):
            cell = divmod(int(place), GRID)
            if not any(_neighbours(cell, other) for other in cells):
                cells.append(cell)
            if len(cells) == count:
                return cells


def _related_cells(rng: np.random.Generator, relation: str) -> list[tuple[int, int]]:
    """Draw two cells such that the first clearly stands in `relation` to the second."""
    along = int(rng.integers(2, GRID))
    across = int(rng.integers(-1, 2)) if along > 2 else 0
    start = int(rng.integers(0, GRID - along))
    side = int(rng.integers(max(0, -across), GRID - max(0, across)))
    near, far = (start, side), (start + along, side + across)
    if relation in ("right of", "below"):
        near, far = far, near
    if relation in ("left of", "right of"):
        near, far = near[::-1], far[::-1]
    return [near, far]


def _two_of(rng: np.random.Generator, names: tuple[str, ...]) -> tuple[str, str]:
    first, second = rng.choice(len(names), 2, replace=False)
    return names[first], names[second]


def _place(rng: np.random.Generator, shape: str, color: str, cell: tuple[int, int]) -> SceneObject:
    size = int(rng.choice(_SIZES_PX))
    slack = CELL_PX - size
    offset = (1 + int(rng.integers(0, slack - 1)), 1 + int(rng.integers(0, slack - 1)))
    jitter = rng.integers(-_COLOR_JITTER, _COLOR_JITTER + 1, 3)
    red, green, blue = (int(value) for value in np.clip(np.asarray(COLORS[color]) + jitter, 0, 255))
    return SceneObject(shape, color, *cell, size, offset, (red, green, blue))


def sample_scene(seed: int, index: int, *, tag: Tag | None = None) -> Scene:
    """Draw the scene of (seed, index).

    Args:
        seed: Seed of the set.
        index: Index in the set.
        tag: What the scene shall be about; drawn when None.
    """
    rng = np.random.default_rng((seed, index))
    drawn = TAGS[int(rng.choice(len(TAGS), p=_TAG_SHARES))]
    tag = tag or drawn
    relation = None
    colors = tuple(COLORS)
    match tag:
        case "single_object" | "colors":
            shapes = [OBJECT_NAMES[int(rng.integers(len(OBJECT_NAMES)))]]
            painted = [colors[int(rng.integers(len(colors)))]]
            cells = _free_cells(rng, 1)
        case "counting":
            count = int(rng.integers(2, _MAX_COUNT + 1))
            shapes = [OBJECT_NAMES[int(rng.integers(len(OBJECT_NAMES)))]] * count
            painted = [colors[int(rng.integers(len(colors)))]] * count
            cells = _free_cells(rng, count)
        case _:
            shapes = list(_two_of(rng, OBJECT_NAMES))
            painted = list(_two_of(rng, colors))
            if tag == "position":
                relation = RELATIONS[int(rng.integers(len(RELATIONS)))]
            cells = _related_cells(rng, relation) if relation else _free_cells(rng, 2)
    objects = tuple(_place(rng, *parts) for parts in zip(shapes, painted, cells, strict=True))
    return Scene(tag, objects, relation, (int(rng.integers(2**32)), index))


def crowded_scene(seed: int, index: int) -> Scene:
    """Draw a scene with an object in about every second cell, neighbours included.

    Nothing is told of it; an autoencoder learns objects from it that ordinary scenes show on a few percent of
    their pixels.
    """
    rng = np.random.default_rng((seed, index, 2))
    cells = [divmod(place, GRID) for place in range(GRID * GRID) if rng.random() < 0.5]
    objects = tuple(
        _place(rng, OBJECT_NAMES[int(rng.integers(len(OBJECT_NAMES)))], tuple(COLORS)[int(rng.integers(10))], cell)
        for cell in cells
    )
    return Scene("counting", objects, None, (int(rng.integers(2**32)), index))


def matching_crowd(seed: int, index: int) -> Scene:
    """Draw a scene with 10 to 25 objects of one shape and colour, neighbours included.

    Its caption tells what fills half of it, so that a model learns to read from it in minutes.
    """
    rng = np.random.default_rng((seed, index, 3))
    shape = OBJECT_NAMES[int(rng.integers(len(OBJECT_NAMES)))]
    color = tuple(COLORS)[int(rng.integers(len(COLORS)))]
    places = rng.permutation(GRID * GRID)[: int(rng.integers(10, 26))]
    objects = tuple(_place(rng, shape, color, divmod(int(place), GRID)) for place in places)
    return Scene("counting", objects, None, (int(rng.integers(2**32)), index))


def spread_scene(scene: Scene, seed: int) -> Scene:
    """Fill 10 to 25 cells with copies of a scene's objects, neighbours included.

    Where the caption tells a relation, each object keeps to its side of the middle; elsewhere they mix. What the
    caption tells then shows in half of the cells, not in one or two of 36, so that a model learns to read from it
    in minutes.

    Args:
        scene: What to spread.
        seed: Seed of the places; the background's seed stays the scene's.
    """
    rng = np.random.default_rng((seed, *scene.background_seed))
    kinds = tuple({(thing.shape, thing.color): None for thing in scene.objects})
    objects = []
    for place in rng.permutation(GRID * GRID)[: int(rng.integers(10, 26))]:
        row, column = divmod(int(place), GRID)
        kind = int(rng.integers(len(kinds)))
        if scene.relation is not None:
            along = column if scene.relation in ("left of", "right of") else row
            kind = int((along < GRID // 2) != (scene.relation in ("left of", "above")))
        objects.append(_place(rng, *kinds[kind], (row, column)))
    return Scene(scene.tag, tuple(objects), scene.relation, scene.background_seed)


def centre_px(thing: SceneObject) -> tuple[float, float]:
    """Return the (x, y) of an object's centre in pixels."""
    half = thing.size_px / 2
    return (
        thing.column * CELL_PX + thing.offset_px[0] + half,
        thing.row * CELL_PX + thing.offset_px[1] + half,
    )


def direction(first: SceneObject, second: SceneObject) -> str | None:
    """Return how `first` stands to `second`, or None on a diagonal where no relation is clear."""
    x, y = (a - b for a, b in zip(centre_px(first), centre_px(second), strict=True))
    if min(abs(x), abs(y)) > 0.5 * math.hypot(x, y):
        return None
    if abs(x) > abs(y):
        return "left of" if x < 0 else "right of"
    return "above" if y < 0 else "below"
