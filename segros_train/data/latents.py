"""What frozen parts make of training images, computed once: autoencoder latents and visual embeddings.

A cache belongs to one backbone's weights and one set of images; both are in its key, so that no other model ever reads
it. Items lie in safetensors files of `SHARD_ITEMS` each, in the type that the frozen parts compute in. An index that is
written last names them, so that a stopped encoding goes on with the first file that is missing.
"""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from segros_train.draws import keyed_generator
from segros_train.errors import PrerequisiteError
from segros_train.files import content_key, replace_file, segros_home, write_json
from segros_train.types import GenerationBatch

if TYPE_CHECKING:
    from segros_train.backbone import Backbone
    from segros_train.data import GenerationSource

__all__ = ["LatentCache", "cache_folder", "encode", "find_cache"]

SHARD_ITEMS = 1024
INDEX = "index.json"
FORMAT = 1

logger = logging.getLogger(__name__)


def cache_folder(name: str, identity: Mapping[str, Any]) -> Path:
    """Return the folder of a cache below `$SEGROS_HOME/latents`.

    Args:
        name: Name of the backbone.
        identity: What determines the cached numbers, as plain values: weights, configuration, data, image size.
    """
    return segros_home() / "latents" / f"{name}-{content_key(identity)[:16]}"


def find_cache(folder: Path) -> LatentCache | None:
    """Open the cache in a folder, None where nothing or only a part of it was encoded.

    Raises:
        PrerequisiteError: If it is damaged, or of another format.
    """
    return LatentCache(folder) if (folder / INDEX).is_file() else None


class LatentCache(Mapping[str, Mapping[str, Tensor]]):
    """A cache on disk, read item by item: tensors by name, by item id.

    Attributes:
        folder: Where it lies.
    """

    def __init__(self, folder: Path) -> None:
        """Open a whole cache.

        Raises:
            PrerequisiteError: If it is damaged, or of another format.
        """
        self.folder = folder
        path = folder / INDEX
        try:
            index = json.loads(path.read_text(encoding="utf-8"))
            names, self._items = tuple(index["tensors"]), list(index["items"])
            known = index["format"] == FORMAT
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise PrerequisiteError(f"{path} is no index of encoded images: {error!r}. Encode them again.") from error
        if not known:
            raise PrerequisiteError(f"{path} is of another version of segros. Remove {folder} and encode again.")
        self._names = names
        self._places = {item_id: place for place, item_id in enumerate(self._items)}
        self._files: dict[int, Any] = {}

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __contains__(self, item_id: object) -> bool:
        return item_id in self._places

    def __getitem__(self, item_id: str) -> dict[str, Tensor]:
        shard, row = divmod(self._places[item_id], SHARD_ITEMS)
        if shard not in self._files:
            self._files[shard] = safe_open(_shard(self.folder, shard), framework="pt")
        return {name: self._files[shard].get_slice(name)[row] for name in self._names}


def _shard(folder: Path, number: int) -> Path:
    return folder / f"items-{number:05d}.safetensors"


def encode(
    backbone: Backbone,
    source: GenerationSource,
    folder: Path,
    *,
    batch_size: int = 32,
    advance: Callable[[int], None] = lambda _: None,
) -> LatentCache:
    """Encode every image of a source, going on where a stopped encoding was.

    An image is cropped as its item id says, once and for all epochs.

    Args:
        backbone: What encodes.
        source: Images with captions.
        folder: Where the cache goes.
        batch_size: Images at once; changes speed only.
        advance: Told how many images were encoded or found.

    Raises:
        PrerequisiteError: If the backbone keeps nothing, or the folder cannot be written.
    """
    kept = find_cache(folder)
    if kept is not None and len(kept) >= len(source):
        advance(len(kept))
        return kept
    (folder / INDEX).unlink(missing_ok=True)
    item_ids: list[str] = []
    names: tuple[str, ...] = ()
    for shard, start in enumerate(range(0, len(source), SHARD_ITEMS)):
        indices = range(start, min(start + SHARD_ITEMS, len(source)))
        path = _shard(folder, shard)
        ids_path = path.with_suffix(".json")
        shard_ids = json.loads(ids_path.read_text(encoding="utf-8")) if ids_path.is_file() and path.is_file() else []
        if len(shard_ids) < len(indices):
            ids_path.unlink(missing_ok=True)
            shard_ids, tensors = _encoded(backbone, source, indices, batch_size=batch_size)
            replace_file(path, functools.partial(save_file, tensors))
            write_json(ids_path, shard_ids)
        with safe_open(path, framework="pt") as whole:
            names = tuple(whole.keys())
        item_ids += shard_ids
        advance(len(indices))
    write_json(folder / INDEX, {"format": FORMAT, "tensors": sorted(names), "items": item_ids})
    logger.info("%s holds %d encoded images.", folder, len(item_ids))
    return LatentCache(folder)


def _encoded(
    backbone: Backbone, source: GenerationSource, indices: range, *, batch_size: int
) -> tuple[list[str], dict[str, Tensor]]:
    """Encode the images of a file."""
    prepare = backbone.image_transform("generation")
    item_ids: list[str] = []
    parts: dict[str, list[Tensor]] = {}
    for start in range(0, len(indices), batch_size):
        samples = [source[index] for index in indices[start : start + batch_size]]
        images = [prepare(sample.image, keyed_generator("encode", sample.item_id)) for sample in samples]
        ids = tuple(sample.item_id for sample in samples)
        batch = GenerationBatch(torch.stack(images), tuple(sample.caption for sample in samples), ids)
        for name, tensor in backbone.frozen_states(batch).items():
            parts.setdefault(name, []).append(tensor.cpu())
        item_ids += ids
    return item_ids, {name: torch.cat(tensors).contiguous() for name, tensors in parts.items()}
