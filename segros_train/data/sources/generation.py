"""Sources of images with captions, opened by the words of a `DataCard`."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segros_train.data.reading import IMAGE_SUFFIXES, DataError, read_image
from segros_train.data.samples import GenerationSample
from segros_train.data.shapes.sets import GenerationSet
from segros_train.errors import PrerequisiteError, unknown_name
from segros_train.files import read_jsonl

if TYPE_CHECKING:
    from segros_train.data.samples import GenerationSource

__all__ = ["CaptionedFolder", "HubImages", "TarImages", "open_generation"]

CAPTION_COLUMNS = ("prompt", "text", "caption")


def open_generation(source: str, *, seed: int, limit: int | None = None) -> GenerationSource:
    """Open a set of captioned images.

    Args:
        source: `"shapes"` (the embedded world), `"hub:<repository>[@<revision>]"` (columns `image` and one of
            `CAPTION_COLUMNS`, split `train`), `"webdataset:<folder>"` (tar files of image and `.txt` members), or
            `"folder:<folder>"` (images with a `.txt` of the same stem, or `captions.jsonl`).
        seed: Seed of a world that is drawn; published sets do not depend on it.
        limit: Take the first items only.

    Raises:
        PrerequisiteError: If the source is unknown, missing, empty or not of its layout.
    """
    kind, _, where = source.partition(":")
    if kind == "shapes":
        return GenerationSet(seed) if limit is None else GenerationSet(seed, limit)
    openers: dict[str, Callable[[str, int | None], GenerationSource]] = {
        "hub": HubImages.open,
        "webdataset": TarImages.open,
        "folder": CaptionedFolder.open,
    }
    if kind not in openers:
        raise unknown_name("source of captioned images", source, ["shapes", *(f"{name}:..." for name in openers)])
    opened = openers[kind](where, limit)
    if len(opened) == 0:
        raise PrerequisiteError(f"{source} holds no image with a caption. Check its layout.")
    return opened


@dataclass(frozen=True)
class CaptionedFolder:
    """Images of a folder, each with its caption.

    Attributes:
        items: Paths with captions.
        root: The folder.
    """

    root: Path
    items: tuple[tuple[str, str], ...]

    @classmethod
    def open(cls, where: str, limit: int | None = None) -> CaptionedFolder:
        """List the folder, in the order of names or of `captions.jsonl` (lines of `file` and `caption`)."""
        root = _existing_folder(where)
        listing = root / "captions.jsonl"
        if listing.exists():
            try:
                items = [(line["file"], line["caption"]) for line in read_jsonl(listing)]
            except (KeyError, TypeError) as error:
                raise PrerequisiteError(
                    f"{listing} needs lines with file and caption; one has not: {error}."
                ) from error
        else:
            images = sorted(path for path in root.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
            items = [
                (image.relative_to(root).as_posix(), image.with_suffix(".txt").read_text(encoding="utf-8").strip())
                for image in images
                if image.with_suffix(".txt").exists()
            ]
        return cls(root, tuple(items[:limit]))

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> GenerationSample:
        name, caption = self.items[index]
        return GenerationSample(name, read_image(self.root / name, item_id=name), caption)


@dataclass(frozen=True)
class _Member:
    """Where a sample's image and caption lie in a tar file: (offset, size) each."""

    tar: Path
    key: str
    image: tuple[int, int]
    caption: tuple[int, int]


@dataclass(frozen=True)
class TarImages:
    """WebDataset tar files, indexed so that any sample is read alone.

    Attributes:
        members: Where each sample lies.
    """

    members: tuple[_Member, ...]

    @classmethod
    def open(cls, where: str, limit: int | None = None) -> TarImages:
        """Index every tar file below a folder, in the order of names."""
        members: list[_Member] = []
        for tar in sorted(_existing_folder(where).rglob("*.tar")):
            if limit is None or len(members) < limit:
                members += _index(tar)
        return cls(tuple(members[:limit]))

    def __len__(self) -> int:
        return len(self.members)

    def __getitem__(self, index: int) -> GenerationSample:
        member = self.members[index]
        item_id = f"{member.tar.name}/{member.key}"
        image, caption = (_read_span(member.tar, span) for span in (member.image, member.caption))
        try:
            text = caption.decode("utf-8").strip()
        except UnicodeDecodeError as error:
            raise DataError(f"Cannot read the caption of item {item_id!r}: {error}.") from error
        return GenerationSample(item_id, read_image(io.BytesIO(image), item_id=item_id), text)


@dataclass(frozen=True)
class HubImages:
    """A data set of the Hugging Face hub.

    Attributes:
        rows: The `datasets.Dataset`, its images left undecoded so that a damaged one can be named.
        caption_column: Column of captions.
    """

    rows: Any
    caption_column: str

    @classmethod
    def open(cls, where: str, limit: int | None = None) -> HubImages:
        """Open `<repository>[@<revision>]`, split `train`, from the local cache or the hub."""
        import datasets

        repository, _, revision = where.partition("@")
        try:
            rows = datasets.load_dataset(repository, split="train", revision=revision or None)
        except (datasets.exceptions.DatasetsError, OSError, ValueError) as error:
            raise PrerequisiteError(
                f"Cannot open {repository!r} from the hub: {error}. Check its name and the network, or fetch it first."
            ) from error
        return cls.of(rows if limit is None else rows.select(range(min(limit, len(rows)))))

    @classmethod
    def of(cls, rows: Any) -> HubImages:
        """Take a `datasets.Dataset` with columns `image` and one of `CAPTION_COLUMNS`."""
        import datasets

        caption = next((name for name in CAPTION_COLUMNS if name in rows.column_names), None)
        if caption is None or "image" not in rows.column_names:
            raise PrerequisiteError(
                f"The data set needs a column image and one of {', '.join(CAPTION_COLUMNS)}; "
                f"it has {', '.join(rows.column_names)}."
            )
        return cls(rows.select_columns(["image", caption]).cast_column("image", datasets.Image(decode=False)), caption)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> GenerationSample:
        row, item_id = self.rows[index], str(index)
        stored = row["image"] or {}
        if stored.get("bytes") is None and stored.get("path") is None:
            raise DataError(f"Item {item_id!r} has no image.")
        caption = row[self.caption_column]
        if not isinstance(caption, str):
            raise DataError(f"Item {item_id!r} has no caption.")
        source = Path(stored["path"]) if stored.get("bytes") is None else io.BytesIO(stored["bytes"])
        return GenerationSample(item_id, read_image(source, item_id=item_id), caption)


def _existing_folder(where: str) -> Path:
    folder = Path(where).expanduser()
    if not folder.is_dir():
        raise PrerequisiteError(f"There is no folder {folder}. Fetch the data set, or name the folder that holds it.")
    return folder


def _index(tar: Path) -> list[_Member]:
    """Pair the image and the caption of each key of a tar file."""
    images: dict[str, tuple[int, int]] = {}
    captions: dict[str, tuple[int, int]] = {}
    try:
        with tarfile.open(tar, "r:") as archive:
            for entry in archive:
                path = Path(entry.name)
                key, span = path.with_suffix("").as_posix(), (entry.offset_data, entry.size)
                if entry.isfile() and path.suffix.lower() in IMAGE_SUFFIXES:
                    images[key] = span
                elif entry.isfile() and path.suffix.lower() == ".txt":
                    captions[key] = span
    except (tarfile.TarError, OSError) as error:
        raise PrerequisiteError(f"Cannot read {tar}: {error}. Fetch it again.") from error
    return [_Member(tar, key, images[key], captions[key]) for key in images if key in captions]


def _read_span(tar: Path, span: tuple[int, int]) -> bytes:
    offset, size = span
    with tar.open("rb") as stream:
        stream.seek(offset)
        return stream.read(size)
