"""What frozen parts make of training images, computed once: latents, codes, visual embeddings.

A cache belongs to one backbone's weights and one set of images, cropped alike each time; its key holds all of them.
Each entry knows the digest of its image, so that a replaced image is never served what another one was encoded to.
Items lie in safetensors files of `SHARD_ITEMS` each, in the type that the frozen parts compute in. An index that is
written last names them all, so that a stopped encoding goes on with the first file that is missing.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from segros_train.backbones.common.precision import autocast_dtype
from segros_train.data.batches import fixed_crop
from segros_train.data.samples import GenerationSample
from segros_train.errors import PrerequisiteError
from segros_train.files import atomic_write, write_json
from segros_train.types import GenerationBatch
from segros_train.weight_files import open_weight_file

if TYPE_CHECKING:
    from PIL.Image import Image

    from segros_train.backbone import Backbone
    from segros_train.data.samples import GenerationSource

__all__ = ["LatentCache", "WithLatents", "encode", "find_cache"]

SHARD_ITEMS = 1024
INDEX = "index.json"
FORMAT = 3
ANEW = "Remove its folder and encode again."
GIB = 2**30

logger = logging.getLogger(__name__)


def find_cache(folder: Path) -> LatentCache | None:
    """Open the cache in a folder, None where nothing or only a part of it was encoded.

    Raises:
        PrerequisiteError: If it is damaged, or of another format.
    """
    return LatentCache(folder) if (folder / INDEX).is_file() else None


class LatentCache:
    """A cache on disk: what frozen parts made of items, each part read when it is asked for.

    Attributes:
        folder: Where it lies.
    """

    def __init__(self, folder: Path) -> None:
        """Open a whole cache.

        Raises:
            PrerequisiteError: If it is damaged, or of another format.
        """
        self.folder, path = folder, folder / INDEX
        try:
            index = json.loads(path.read_text(encoding="utf-8"))
            known, self._digests = index["format"] == FORMAT, dict(index["items"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise PrerequisiteError(f"{path} is no index of encoded images: {error!r}. Encode them again.") from error
        if not known:
            raise PrerequisiteError(f"{path} is of another version of segros. Remove {folder} and encode again.")
        self._places = {item_id: place for place, item_id in enumerate(self._digests)}

    def __len__(self) -> int:
        return len(self._digests)

    def latents(self, item_id: str, image: Image) -> Mapping[str, Tensor] | None:
        """Return what was made of an item, None where it was not encoded or its image was another one."""
        if self._digests.get(item_id) != _digest(image):
            return None
        shard, row = divmod(self._places[item_id], SHARD_ITEMS)
        return _Latents(_shard(self.folder, shard), row)


@dataclass(frozen=True)
class _Latents(Mapping[str, Tensor]):
    """What was made of one item, by name; it travels between processes as the place where it lies."""

    path: Path
    row: int

    def __getitem__(self, name: str) -> Tensor:
        return _opened(self.path).get_slice(name)[self.row]

    def __iter__(self) -> Iterator[str]:
        return iter(_opened(self.path).keys())

    def __len__(self) -> int:
        return len(_opened(self.path).keys())


@functools.lru_cache(maxsize=1024)
def _opened(path: Path) -> Any:
    return open_weight_file(path, remedy=ANEW)


@dataclass(frozen=True)
class WithLatents:
    """A set of captioned images with what is in a cache of them.

    Attributes:
        source: The images.
        cache: What was made of them.
    """

    source: GenerationSource
    cache: LatentCache

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> GenerationSample:
        sample = self.source[index]
        return replace(sample, latents=self.cache.latents(sample.item_id, sample.image))


def _digest(image: Image) -> str:
    """Return a digest of an image's pixels."""
    return hashlib.blake2b(f"{image.mode}{image.size}".encode() + image.tobytes(), digest_size=16).hexdigest()


def _shard(folder: Path, number: int) -> Path:
    return folder / f"items-{number:05d}.safetensors"


def encode(
    backbone: Backbone,
    source: GenerationSource,
    folder: Path,
    *,
    precision: Literal["auto", "fp32", "bf16"] = "auto",
    batch_size: int = 32,
    advance: Callable[[int], None] = lambda _: None,
) -> LatentCache:
    """Encode every item of a source, going on where a stopped encoding was.

    Args:
        backbone: What encodes.
        source: Images with captions.
        folder: Where the cache goes.
        precision: Of matrix products, as in the recipe of the training to come.
        batch_size: Images at once; changes speed only.
        advance: Told how many images were encoded or found.

    Raises:
        PrerequisiteError: If the backbone has no frozen part, the folder cannot be written, or the disk is too small.
    """
    kept = find_cache(folder)
    if kept is not None and len(kept) >= len(source):
        advance(len(kept))
        return kept
    (folder / INDEX).unlink(missing_ok=True)
    items: dict[str, str] = {}
    for shard, start in enumerate(range(0, len(source), SHARD_ITEMS)):
        indices = range(start, min(start + SHARD_ITEMS, len(source)))
        path = _shard(folder, shard)
        found = _found(path)
        if len(found) < len(indices):
            path.with_suffix(".json").unlink(missing_ok=True)
            device = next(backbone.parameters()).device
            dtype = autocast_dtype(precision, device)
            with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
                found, tensors = _encoded(backbone, source, indices, batch_size=batch_size)
            with atomic_write(path) as temporary:
                save_file(tensors, temporary)
            _opened.cache_clear()
            write_json(path.with_suffix(".json"), found)
            _check_room(path, len(indices), num_left=len(source) - indices.stop)
        items |= found
        advance(len(indices))
    write_json(folder / INDEX, {"format": FORMAT, "items": items})
    logger.info("%s holds %d encoded images.", folder, len(items))
    return LatentCache(folder)


def _found(path: Path) -> dict[str, str]:
    """Return the items of a file that is whole, with their images' digests; none where it has to be made."""
    record = path.with_suffix(".json")
    if not record.is_file() or not path.is_file():
        return {}
    _opened(path)
    found = json.loads(record.read_text(encoding="utf-8"))
    return found if isinstance(found, dict) else {}


def _check_room(path: Path, num_items: int, *, num_left: int) -> None:
    """Stop an encoding that the disk will not hold, before hours of it."""
    needed, free = path.stat().st_size * num_left / num_items, shutil.disk_usage(path.parent).free
    if needed > free:
        raise PrerequisiteError(
            f"{num_left:,} more items take about {needed / GIB:.1f} GiB, {path.parent} has {free / GIB:.1f} GiB free. "
            "Free space, put $SEGROS_HOME elsewhere, or encode fewer with --limit."
        )


def _encoded(
    backbone: Backbone, source: GenerationSource, indices: range, *, batch_size: int
) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Encode the items of a file."""
    prepare = backbone.image_transform("generation")
    items: dict[str, str] = {}
    parts: dict[str, list[Tensor]] = {}
    for start in range(0, len(indices), batch_size):
        samples = [source[index] for index in indices[start : start + batch_size]]
        images = torch.stack([prepare(sample.image, fixed_crop(sample.item_id)) for sample in samples])
        ids = tuple(sample.item_id for sample in samples)
        encoded = backbone.encode(GenerationBatch(images, tuple(sample.caption for sample in samples), ids))
        if not encoded.frozen:
            raise PrerequisiteError(f"{backbone.card.title} has no frozen part to encode with; train it without.")
        for name in encoded.frozen:
            parts.setdefault(name, []).append(encoded[name].cpu())
        items |= {sample.item_id: _digest(sample.image) for sample in samples}
    return items, {name: torch.cat(tensors).contiguous() for name, tensors in parts.items()}
