"""Folders of images that anything drew, read against an evaluation set, and what is wrong with them.

Each benchmark has layouts of its own (`evaluators/*_folder.py`); what they have in common is here. A fault is named,
counted, and what it touches is unscored, never wrong.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from segros_eval.benchmarks.base import Sample, Score
from segros_eval.benchmarks.images import UnreadableImageError, read_image
from segros_train.errors import PrerequisiteError
from segros_train.files import file_sha256

__all__ = [
    "FaultKind",
    "FolderFault",
    "GridCell",
    "ImageFolder",
    "WantedSize",
    "absent",
    "image_fault",
    "pictures_in",
    "read_response",
    "response_fault",
    "unscored",
    "wanted_size",
]

PICTURES = (".png", ".jpg", ".jpeg", ".webp")

FaultKind = Literal[
    "missing prompt",
    "too few images",
    "unreadable image",
    "duplicate image",
    "wrong size",
    "foreign prompt",
    "no record",
]


@dataclass(frozen=True)
class FolderFault:
    """Something wrong with a folder of images.

    Attributes:
        kind: `"missing prompt"`, `"too few images"`, `"unreadable image"`, `"duplicate image"` (the bytes of another
            image of the prompt), `"wrong size"`, `"foreign prompt"` (not in the evaluation set, or there twice) or
            `"no record"`.
        item: What is concerned: an image or a folder below the root, or the text of a missing prompt.
        detail: What was found.
    """

    kind: FaultKind
    item: str
    detail: str


@dataclass(frozen=True)
class ImageFolder:
    """A folder of images, read against an evaluation set.

    Attributes:
        samples: What can be scored.
        paths: The image of each sample, or the part of one that is meant.
        unscored: A score without a value for everything that should be there and cannot be scored.
        faults: What is wrong, in the order it was found.
    """

    samples: tuple[Sample, ...] = ()
    paths: tuple[Any, ...] = ()
    unscored: tuple[Score, ...] = ()
    faults: tuple[FolderFault, ...] = ()


@dataclass(frozen=True)
class WantedSize:
    """The size that every image of a folder must have.

    Attributes:
        size: Width and height; None where the images differ and none of their sizes is that of most.
        is_given: Whether the user named it.
    """

    size: tuple[int, int] | None
    is_given: bool = False

    def fault(self, path: Path) -> str:
        """Say how a readable image's size is wrong; empty where it is right."""
        found = _size(path)
        if self.size is None:
            return f"{found}, and no size is that of most images; say which is meant with --side-px"
        if found == self.size:
            return ""
        return f"{found}, {self.size} is asked for" if self.is_given else f"{found}, most others are {self.size}"


@dataclass(frozen=True)
class GridCell:
    """A picture within a grid of 2 x 2.

    Attributes:
        path: The grid's file.
        index: 0 to 3: top left, top right, bottom left, bottom right.
    """

    path: Path
    index: int

    def read(self) -> Image.Image:
        """Return the picture.

        Raises:
            UnreadableImageError: If the grid cannot be read.
        """
        grid = read_image(self.path)
        width, height = grid.width // 2, grid.height // 2
        row, column = divmod(self.index, 2)
        return grid.crop((column * width, row * height, (column + 1) * width, (row + 1) * height))


def read_response(response: Any) -> Image.Image | str:
    """Return the image of a response (an image, a path, a cell of a grid, or None), or why there is none."""
    if response is None:
        return "no image was drawn"
    try:
        return response.read() if isinstance(response, GridCell) else read_image(response)
    except UnreadableImageError as error:
        return str(error)


def response_fault(response: Any) -> str:
    """Say why a response is no image that can be read; empty where it is one."""
    image = read_response(response)
    return image if isinstance(image, str) else ""


def pictures_in(root: Path) -> list[Path]:
    """Return the pictures that lie in a folder, by name.

    Raises:
        PrerequisiteError: If there is no such folder, or no picture in it.
    """
    if not root.is_dir():
        raise PrerequisiteError(
            f"There is no folder {root}",
            "Name a folder of images in a layout of the benchmark.",
        )
    found = sorted(path for path in root.iterdir() if path.suffix.lower() in PICTURES)
    if not found:
        raise PrerequisiteError(
            f"{root} holds no picture ({', '.join(PICTURES)})",
            "Name the folder that holds them.",
        )
    return found


def wanted_size(paths: Sequence[Path], side_px: int | None = None) -> WantedSize:
    """Return the size that images must have: the one that is asked for, else that of more than half of the readable.

    Args:
        paths: The images of a folder.
        side_px: Width and height that the user names.
    """
    if side_px is not None:
        return WantedSize((side_px, side_px), is_given=True)
    sizes = Counter(size for size in map(_size, paths) if size is not None)
    size, count = sizes.most_common(1)[0] if sizes else (None, 0)
    return WantedSize(size if 2 * count > sizes.total() else None)


def unscored(item_id: str, cluster_id: str, reason: str, *, group: str = "") -> Score:
    """Return the score of an image that cannot be scored."""
    return Score(item_id, cluster_id, None, None, "unscored", None, reason=reason, group=group)


def absent(cluster_id: str, number: int, reason: str, *, group: str = "") -> list[Score]:
    """Return the scores of images that should be there and are not."""
    places = range(1, number + 1)
    return [unscored(f"{cluster_id}/missing-{place}", cluster_id, reason, group=group) for place in places]


def _size(path: Path) -> tuple[int, int] | None:
    try:
        with Image.open(path) as image:
            return image.size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None


def image_fault(path: Path, name: str, *, seen: dict[str, str], size: WantedSize) -> FolderFault | None:
    """Say what is wrong with an image file: unreadable, of another size, or a copy of another.

    Args:
        path: The file.
        name: How a fault shall call it.
        seen: Files by their content; this one is added.
        size: What it should have.
    """
    try:
        read_image(path)
    except UnreadableImageError as error:
        return FolderFault("unreadable image", name, str(error))
    if fault := size.fault(path):
        return FolderFault("wrong size", name, fault)
    original = seen.setdefault(file_sha256(path), path.name)
    if original != path.name:
        return FolderFault("duplicate image", name, f"byte for byte {original}")
    return None
