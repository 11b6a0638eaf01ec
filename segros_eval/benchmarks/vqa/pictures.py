"""Pictures that are read when they are looked at, wherever they lie: scenes, archives, tables, several side by side."""

from __future__ import annotations

import base64
import binascii
import functools
import io
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from segros_eval.benchmarks.base import Picture
from segros_eval.benchmarks.images import UnreadableImageError, read_image
from segros_eval.benchmarks.vqa.tables import cell_pictures, parquet_table, read_record

__all__ = ["CellPicture", "Joined", "MemberPicture", "ScenePicture", "TsvPicture", "open_picture", "picture_name"]

GAP_PX = 8
GAP_COLOR = (127, 127, 127)


def open_picture(picture: Path | Picture) -> Image.Image:
    """Read a picture as RGB.

    Raises:
        UnreadableImageError: If it is missing or damaged.
    """
    return read_image(picture) if isinstance(picture, Path) else picture.open()


def picture_name(picture: Path | Picture) -> str:
    """Return what a picture is called, the same on every machine."""
    return picture.name


@dataclass(frozen=True)
class ScenePicture:
    """A scene of the embedded world, drawn when looked at."""

    seed: int
    index: int

    @property
    def name(self) -> str:
        """Its seed and index."""
        return f"shapes/{self.seed}/{self.index}"

    def open(self) -> Image.Image:
        """Draw it."""
        from segros_train.data.shapes.world import render, sample_scene

        return render(sample_scene(self.seed, self.index))


@dataclass(frozen=True)
class Joined:
    """Several pictures side by side, scaled to the height of the highest, with a gray gap between."""

    parts: tuple[Path | Picture, ...]

    @property
    def name(self) -> str:
        """The names of its parts."""
        return f"joined({', '.join(map(picture_name, self.parts))})"

    def open(self) -> Image.Image:
        """Read and join the parts.

        Raises:
            UnreadableImageError: If a part is missing or damaged.
        """
        images = [open_picture(part) for part in self.parts]
        height = max(image.height for image in images)
        scaled = [image.resize((max(1, round(image.width * height / image.height)), height)) for image in images]
        width = sum(image.width for image in scaled) + GAP_PX * (len(scaled) - 1)
        canvas = Image.new("RGB", (width, height), GAP_COLOR)
        left = 0
        for image in scaled:
            canvas.paste(image, (left, 0))
            left += image.width + GAP_PX
        return canvas


@dataclass(frozen=True)
class MemberPicture:
    """A file in a zip archive."""

    archive: Path
    member: str

    @property
    def name(self) -> str:
        """Its path in the archive."""
        return self.member

    def open(self) -> Image.Image:
        """Read it.

        Raises:
            UnreadableImageError: If the archive or the file in it is missing or damaged.
        """
        where = f"{self.member} in {self.archive}"
        try:
            data = _archive(self.archive).read(self.member)
        except (OSError, KeyError, zipfile.BadZipFile, zlib.error) as error:
            raise UnreadableImageError(f"{where} cannot be read: {error}") from error
        return _decoded(data, where)


@dataclass(frozen=True)
class CellPicture:
    """A picture in a column of a table that `datasets` reads: encoded bytes, or a list of them.

    Attributes:
        files: The table's parquet files, in order.
        row: Row in the table.
        column: Name of the column.
        place: Place in the list; None where the cell is one picture.
    """

    files: tuple[Path, ...]
    row: int
    column: str
    place: int | None = None

    @property
    def name(self) -> str:
        """Its row and column."""
        return f"{self.row}/{self.column}" + ("" if self.place is None else f"/{self.place}")

    def open(self) -> Image.Image:
        """Read it.

        Raises:
            UnreadableImageError: If the cell is empty or its bytes are no image.
        """
        where = f"column {self.column} of row {self.row} of {self.files[0].name}"
        cell: Any = parquet_table(self.files).column(self.column)[self.row].as_py()
        if self.place is not None:
            cell = cell[self.place] if cell is not None and self.place < len(cell) else None
        if not cell or not cell.get("bytes"):
            raise UnreadableImageError(f"{where} holds no picture")
        return _decoded(cell["bytes"], where)


@dataclass(frozen=True)
class TsvPicture:
    """A picture in base64 in a table with tabs between its columns.

    Attributes:
        path: The table.
        offset: Where the record starts, in bytes.
        length: Length of the record in bytes.
        column: Place of the column.
        place: Place in the cell's list of pictures; None where the cell is one picture.
    """

    path: Path
    offset: int
    length: int
    column: int
    place: int | None = None

    @property
    def name(self) -> str:
        """Where it stands in the table."""
        return f"{self.offset}" + ("" if self.place is None else f"/{self.place}")

    def open(self) -> Image.Image:
        """Read it.

        Raises:
            UnreadableImageError: If the table cannot be read or the cell is no image.
        """
        where = f"the picture of the record at byte {self.offset} of {self.path}"
        try:
            with self.path.open("rb") as stream:
                stream.seek(self.offset)
                cell = read_record(stream.read(self.length))[self.column]
            text = cell if self.place is None else cell_pictures(cell)[self.place]
            return _decoded(base64.b64decode(text, validate=True), where)
        except (OSError, IndexError, ValueError, binascii.Error) as error:
            raise UnreadableImageError(f"{where} cannot be read: {error}") from error


@functools.lru_cache(maxsize=8)
def _archive(path: Path) -> zipfile.ZipFile:
    return zipfile.ZipFile(path)


def _decoded(data: bytes, where: str) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(data))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UnreadableImageError(f"{where} cannot be read: {error}") from error
    try:
        return read_image(image)
    except UnreadableImageError as error:
        raise UnreadableImageError(f"{where}: {error}") from error
