"""The folder layouts that scorers of DPG-Bench read, and what is wrong with a folder.

    <root>/<item>.png        a 2x2 grid (ELLA), read top left, top right, bottom left, bottom right
    <root>/<item>_<k>.jpg    one picture a file (RecA); any extension of a picture

No item id holds an underscore. A grid's cells are the halves of its own sides; grids must be of one size, and single
pictures of one, which may be named.

Source: TencentQQGYLab/ELLA@3c228f1, dpg_bench/compute_dpg_bench.py; RecA@b250aa1, Benchmark/dpgbench.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from segros_eval.benchmarks.base import Sample, Score
from segros_eval.benchmarks.folders import (
    FolderFault,
    GridCell,
    ImageFolder,
    absent,
    image_fault,
    pictures_in,
    unscored,
    wanted_size,
)

__all__ = ["folder_items", "read_dpgbench_folder"]

CELLS = 4
Layout = Literal["auto", "grid", "files"]


def folder_items(root: Path) -> Iterator[str]:
    """Yield the item ids that a folder's file names hold.

    Raises:
        PrerequisiteError: If the folder holds no picture.
    """
    yield from dict.fromkeys(_item(path) for path in pictures_in(root))


def read_dpgbench_folder(
    root: Path,
    *,
    prompts: Sequence[Mapping[str, Any]],
    images_per_prompt: int,
    layout: Layout = "auto",
    side_px: int | None = None,
) -> ImageFolder:
    """Read a folder and name everything that is wrong with it.

    Args:
        root: The folder.
        prompts: Records of the evaluation set.
        images_per_prompt: Images that each prompt should have; of a grid the first of its four cells.
        layout: See `DPGBench.layout`.
        side_px: Width and height that pictures must have, cells of grids among them; None for those of most.

    Raises:
        PrerequisiteError: If the folder holds no picture.
    """
    files: dict[str, list[Path]] = {}
    for path in pictures_in(root):
        files.setdefault(_item(path), []).append(path)
    awaited = {record["item_id"]: record for record in prompts}
    found = _Found([path for paths in files.values() for path in paths], images_per_prompt, layout, side_px)
    for item, record in awaited.items():
        found.take(record, files.get(item, []))
    for item, paths in files.items():
        if item not in awaited:
            found.refuse(item, paths)
    return ImageFolder(tuple(found.samples), tuple(found.paths), tuple(found.unscored), tuple(found.faults))


class _Found:
    """Collect what a folder holds, prompt by prompt."""

    def __init__(self, paths: Sequence[Path], images_per_prompt: int, layout: Layout, side_px: int | None) -> None:
        self.images_per_prompt, self.layout = images_per_prompt, layout
        grids = [path for path in paths if self._is_grid(path)]
        self.grid_size = wanted_size(grids, None if side_px is None else 2 * side_px)
        self.size = wanted_size([path for path in paths if not self._is_grid(path)], side_px)
        self.samples: list[Sample] = []
        self.paths: list[Any] = []
        self.unscored: list[Score] = []
        self.faults: list[FolderFault] = []

    def take(self, record: Mapping[str, Any], paths: Sequence[Path]) -> None:
        """Take the files of a prompt of the evaluation set."""
        item = record["item_id"]
        seen: dict[str, str] = {}
        num_found = 0
        for path in paths:
            cells = self._cells(path)
            num_found += len(cells)
            size = self.grid_size if self._is_grid(path) else self.size
            fault = image_fault(path, path.name, seen=seen, size=size) or _uneven(path, cells)
            if fault is not None:
                self.faults.append(fault)
            for cell in cells:
                item_id = f"{item}/{path.stem}" if cell == path else f"{item}/{path.stem}-{cell.index}"
                if fault is None:
                    self.samples.append(Sample(item_id, item, "image", record["prompt"], metadata=record))
                    self.paths.append(cell)
                else:
                    self.unscored.append(unscored(item_id, item, f"{fault.kind}: {fault.detail}"))
        lacking = max(0, self.images_per_prompt - num_found)
        if lacking:
            kind: Any = "too few images" if paths else "missing prompt"
            detail = f"{num_found} of {self.images_per_prompt} images" if paths else f"no file is called after {item}"
            self.faults.append(FolderFault(kind, item, detail))
            self.unscored += absent(item, lacking, f"{kind}: {detail}")

    def refuse(self, item: str, paths: Sequence[Path]) -> None:
        """Name the files of an item that is not in the evaluation set."""
        detail = f"{item!r} is not in the evaluation set"
        self.faults += [FolderFault("foreign prompt", path.name, detail) for path in paths]
        self.unscored += [unscored(f"file-{path.name}", item, f"foreign prompt: {detail}") for path in paths]

    def _is_grid(self, path: Path) -> bool:
        return self.layout == "grid" or (self.layout == "auto" and "_" not in path.stem)

    def _cells(self, path: Path) -> list[Any]:
        if not self._is_grid(path):
            return [path]
        return [GridCell(path, index) for index in range(min(CELLS, self.images_per_prompt))]


def _uneven(path: Path, cells: Sequence[Any]) -> FolderFault | None:
    """Say that a grid cannot be halved."""
    if not isinstance(cells[0], GridCell):
        return None
    with Image.open(path) as image:
        size = image.size
    if size[0] % 2 or size[1] % 2:
        return FolderFault("wrong size", path.name, f"a grid of {size} has no halves of whole pixels")
    return None


def _item(path: Path) -> str:
    return path.name.split(".")[0].split("_")[0]
