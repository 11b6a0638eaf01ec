"""What frozen parts make of training items, computed once: latents, visual embeddings, and states of captions if asked.

A cache belongs to one backbone's weights and one set of images; both are in its key, so that no other model ever reads
it. Items lie in safetensors files of `SHARD_ITEMS` each, in the type that the frozen parts compute in. What is longer
for one item than for another lies end to end, without padding, beside a tensor of where each item begins. An index that
is written last names them all, so that a stopped encoding goes on with the first file that is missing.
"""

from __future__ import annotations

import functools
import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from segros_train.backbones.common.precision import autocast_dtype
from segros_train.draws import keyed_generator
from segros_train.errors import PrerequisiteError
from segros_train.files import content_key, replace_file, segros_home, write_json
from segros_train.types import GenerationBatch
from segros_train.weight_files import open_weight_file

if TYPE_CHECKING:
    from segros_train.backbone import Backbone
    from segros_train.data.samples import GenerationSource

__all__ = ["LatentCache", "cache_folder", "encode", "find_cache"]

SHARD_ITEMS = 1024
INDEX = "index.json"
FORMAT = 2
BOUNDS = ".bounds"
"""End of the name of the tensor that tells where each item of another one begins, and the last one ends."""
ANEW = "Remove its folder and encode again."
GIB = 2**30

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
    """A cache on disk: tensors by name, by item id, each read when it is asked for.

    Attributes:
        folder: Where it lies.
        holds_captions: Whether it holds states of captions beside those of images.
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
            known, self.holds_captions = index["format"] == FORMAT, index.get("captions", False)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise PrerequisiteError(f"{path} is no index of encoded images: {error!r}. Encode them again.") from error
        if not known:
            raise PrerequisiteError(f"{path} is of another version of segros. Remove {folder} and encode again.")
        self.names = tuple(name for name in names if not name.endswith(BOUNDS))
        self._ragged = frozenset(name for name in self.names if name + BOUNDS in names)
        self._places = {item_id: place for place, item_id in enumerate(self._items)}
        self._files: dict[int, Any] = {}

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __contains__(self, item_id: object) -> bool:
        return item_id in self._places

    def __getitem__(self, item_id: str) -> _Item:
        return _Item(self, self._places[item_id])

    def share_of(self, num_items: int) -> str:
        """Say how much of a training's items it holds, and where it lies."""
        what = "images and captions" if self.holds_captions else "images"
        return f"{len(self):,} of {num_items:,} {what} were encoded beforehand and are read from {self.folder}"

    def read(self, place: int, name: str) -> Tensor:
        """Return a tensor of the item at a place.

        Raises:
            KeyError: If the cache holds none of this name.
        """
        if name not in self.names:
            raise KeyError(name)
        shard, row = divmod(place, SHARD_ITEMS)
        if shard not in self._files:
            self._files[shard] = open_weight_file(_shard(self.folder, shard), remedy=ANEW)
        file = self._files[shard]
        if name not in self._ragged:
            return file.get_slice(name)[row]
        start, stop = file.get_slice(name + BOUNDS)[row : row + 2].tolist()
        return file.get_slice(name)[start:stop]


class _Item(Mapping[str, Tensor]):
    """The tensors of one item by name."""

    def __init__(self, cache: LatentCache, place: int) -> None:
        self._cache, self._place = cache, place

    def __len__(self) -> int:
        return len(self._cache.names)

    def __iter__(self) -> Iterator[str]:
        return iter(self._cache.names)

    def __getitem__(self, name: str) -> Tensor:
        return self._cache.read(self._place, name)


def _shard(folder: Path, number: int) -> Path:
    return folder / f"items-{number:05d}.safetensors"


def encode(
    backbone: Backbone,
    source: GenerationSource,
    folder: Path,
    *,
    captions: bool = False,
    precision: Literal["auto", "fp32", "bf16"] = "auto",
    batch_size: int = 32,
    advance: Callable[[int], None] = lambda _: None,
) -> LatentCache:
    """Encode every item of a source, going on where a stopped encoding was.

    An image is cropped as its item id says, once and for all epochs.

    Args:
        backbone: What encodes.
        source: Images with captions.
        folder: Where the cache goes.
        captions: Whether to keep what the language model makes of captions too.
        precision: Of matrix products, as in the recipe of the training to come.
        batch_size: Images at once; changes speed only.
        advance: Told how many images were encoded or found.

    Raises:
        PrerequisiteError: If the backbone keeps nothing, the folder cannot be written, or the disk is too small.
    """
    kept = find_cache(folder)
    if kept is not None and len(kept) >= len(source) and kept.holds_captions >= captions:
        advance(len(kept))
        return kept
    (folder / INDEX).unlink(missing_ok=True)
    item_ids: list[str] = []
    names: list[frozenset[str]] = []
    for shard, start in enumerate(range(0, len(source), SHARD_ITEMS)):
        indices = range(start, min(start + SHARD_ITEMS, len(source)))
        path = _shard(folder, shard)
        shard_ids = _found(path, captions=captions)
        if len(shard_ids) < len(indices):
            path.with_suffix(".json").unlink(missing_ok=True)
            device = next(backbone.parameters()).device
            dtype = autocast_dtype(precision, device)
            with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
                shard_ids, tensors = _encoded(backbone, source, indices, captions=captions, batch_size=batch_size)
            replace_file(path, functools.partial(save_file, tensors))
            write_json(path.with_suffix(".json"), {"captions": captions, "items": shard_ids})
            _check_room(path, len(indices), num_left=len(source) - indices.stop)
        with open_weight_file(path, remedy=ANEW) as whole:
            names.append(frozenset(whole.keys()))
        item_ids += shard_ids
        advance(len(indices))
    tensors_of_all = sorted(frozenset.intersection(*names))
    write_json(folder / INDEX, {"format": FORMAT, "captions": captions, "tensors": tensors_of_all, "items": item_ids})
    logger.info("%s holds %d encoded images.", folder, len(item_ids))
    return LatentCache(folder)


def _found(path: Path, *, captions: bool) -> list[str]:
    """Return the items of a file that is whole and holds what is asked for; none where it has to be made."""
    record = path.with_suffix(".json")
    if not record.is_file() or not path.is_file():
        return []
    found = json.loads(record.read_text(encoding="utf-8"))
    return found["items"] if isinstance(found, dict) and found["captions"] >= captions else []


def _check_room(path: Path, num_items: int, *, num_left: int) -> None:
    """Stop an encoding that the disk will not hold, before hours of it."""
    needed, free = path.stat().st_size * num_left / num_items, shutil.disk_usage(path.parent).free
    if needed > free:
        raise PrerequisiteError(
            f"{num_left:,} more items take about {needed / GIB:.1f} GiB, {path.parent} has {free / GIB:.1f} GiB free. "
            "Free space, put $SEGROS_HOME elsewhere, or encode fewer with --limit; --states takes most."
        )


def _encoded(
    backbone: Backbone, source: GenerationSource, indices: range, *, captions: bool, batch_size: int
) -> tuple[list[str], dict[str, Tensor]]:
    """Encode the items of a file."""
    prepare = backbone.image_transform("generation")
    item_ids: list[str] = []
    parts: dict[str, list[Tensor]] = {}
    lengths: dict[str, list[int]] = {}
    for start in range(0, len(indices), batch_size):
        samples = [source[index] for index in indices[start : start + batch_size]]
        images = [prepare(sample.image, keyed_generator("encode", sample.item_id)) for sample in samples]
        ids = tuple(sample.item_id for sample in samples)
        batch = GenerationBatch(torch.stack(images), tuple(sample.caption for sample in samples), ids)
        for name, states in backbone.frozen_states(batch, captions=captions).items():
            if isinstance(states, Tensor):
                parts.setdefault(name, []).append(states.cpu())
                continue
            parts.setdefault(name, []).extend(state.cpu() for state in states)
            lengths.setdefault(name, []).extend(map(len, states))
        item_ids += ids
    whole = {name: torch.cat(tensors).contiguous() for name, tensors in parts.items()}
    bounds = {name + BOUNDS: torch.tensor((0, *accumulate(each))) for name, each in lengths.items()}
    return item_ids, whole | bounds
