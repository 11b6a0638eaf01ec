"""Checkpoints of ours, whatever the family: `config.json`, `model.safetensors`, `tokenizer.json`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

from segros_train.backbone import Conditioning
from segros_train.errors import PrerequisiteError
from segros_train.files import atomic_write, write_json
from segros_train.types import BackboneCard
from segros_train.weight_files import read_weight_file

__all__ = ["Checkpoint", "check_keys", "read_checkpoint", "read_state", "write_checkpoint"]

LISTED_KEYS = 20


Texts = TypeVar("Texts")


@dataclass(frozen=True)
class Checkpoint(Generic[Texts]):
    """What a checkpoint of ours holds, its tokenizer as the family wraps it."""

    state: Mapping[str, Tensor]
    conditioning: Conditioning
    tokenizer: Texts


def read_state(path: Path) -> dict[str, Tensor]:
    """Read named tensors from a file of weights, or from every file that an index of them names.

    Raises:
        PrerequisiteError: If a file is missing or damaged, or holds or names something else.
    """
    if path.name.endswith(".index.json"):
        return {key: value for part in _parts(path) for key, value in read_state(part).items()}
    values = read_weight_file(path)
    for wrapper in ("state_dict", "model"):
        if isinstance(values, Mapping) and isinstance(values.get(wrapper), Mapping):
            values = values[wrapper]
    if not isinstance(values, Mapping) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in values.items()
    ):
        raise PrerequisiteError(f"{path} holds no named tensors; name a checkpoint.")
    return dict(values)


def _parts(index: Path) -> list[Path]:
    """Return the files of weights that an index beside them names."""
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        parts = [index.with_name(name) for name in names]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise PrerequisiteError(f"Cannot read the index of weights {index}: {error!r}. Fetch it again.") from error
    if any(part.suffix == ".json" for part in parts):
        raise PrerequisiteError(f"The index of weights {index} names no files of weights. Fetch it again.")
    return parts


def check_keys(expected: Mapping[str, Tensor], state: Mapping[str, Tensor], origin: str, family: str) -> None:
    """Raise PrerequisiteError that lists what differs unless keys and shapes are those of `expected`."""
    both = expected.keys() & state.keys()
    problems = {
        "missing": sorted(expected.keys() - state.keys()),
        "unexpected": sorted(state.keys() - expected.keys()),
        "of another shape": sorted(
            f"{key} {tuple(state[key].shape)} instead of {tuple(expected[key].shape)}"
            for key in both
            if state[key].shape != expected[key].shape
        ),
    }
    found = [f"{len(keys)} {kind}: {_listing(keys)}" for kind, keys in problems.items() if keys]
    if found:
        raise PrerequisiteError(f"{origin} does not fit this {family}. Keys {'; '.join(found)}.")


def _listing(keys: Iterable[str]) -> str:
    names = list(keys)
    rest = len(names) - LISTED_KEYS
    return ", ".join(names[:LISTED_KEYS]) + (f" and {rest} more" if rest > 0 else "")


def write_checkpoint(
    directory: Path,
    state: Mapping[str, Tensor],
    *,
    card: BackboneCard,
    config: Any,
    tokenizer: Tokenizer,
    conditioning: Conditioning,
    dtype: torch.dtype,
) -> None:
    """Write a checkpoint of ours; `config.json` comes last and marks it as whole.

    Args:
        directory: Created when absent.
        state: Weights under the family's key names.
        card: The card the weights realise.
        config: The configuration they have, a dataclass.
        tokenizer: Written as `tokenizer.json`.
        conditioning: Choices the weights were trained under.
        dtype: Type on disk of floating-point tensors.

    Raises:
        PrerequisiteError: If the folder cannot be written.
    """
    kept = {
        key: (value.detach().to("cpu", dtype) if value.is_floating_point() else value.detach().cpu()).contiguous()
        for key, value in state.items()
    }
    with atomic_write(directory / "model.safetensors") as temporary:
        save_file(kept, temporary)
    with atomic_write(directory / "tokenizer.json") as temporary:
        tokenizer.save(str(temporary))
    record = {
        "family": card.family,
        "card": card.name,
        "config": asdict(config),
        "realisation": asdict(conditioning),
    }
    write_json(directory / "config.json", record)


def read_checkpoint(
    directory: Path,
    card: BackboneCard,
    *,
    function: Sequence[str],
    tokenizer: Callable[[Path], Texts],
) -> Checkpoint[Texts]:
    """Read a checkpoint of ours.

    Args:
        directory: Holds the checkpoint.
        card: What it shall be a checkpoint of.
        function: Parts of the configuration that decide what weights compute, and must be the card's.
        tokenizer: Read the family's tokenizer from its file.

    Raises:
        PrerequisiteError: If it is damaged, of another card, or of another configuration.
    """
    path = directory / "config.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        config = type(card.config).from_dict(record["config"])
        conditioning = Conditioning(**record["realisation"])
        family, name = record["family"], record["card"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PrerequisiteError(f"{path} describes no checkpoint of segros: {error!r}.") from error
    if (family, name) != (card.family, card.name):
        raise PrerequisiteError(f"{directory} is a checkpoint of {name}, asked for {card.name}.")
    written, asked = ({part: asdict(value)[part] for part in function} for value in (config, card.config))
    if changed := _listed_changes(written, asked):
        raise PrerequisiteError(f"{directory} was written with another configuration: {'; '.join(changed)}.")
    texts = tokenizer(directory / "tokenizer.json")
    return Checkpoint(read_state(directory / "model.safetensors"), conditioning, texts)


def _listed_changes(written: Mapping[str, Any], asked: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Name the fields of a configuration that differ from those asked for."""
    changes = []
    for name, value in asked.items():
        if isinstance(value, Mapping) and isinstance(written[name], Mapping):
            changes += _listed_changes(written[name], value, f"{prefix}{name}.")
        elif written[name] != value:
            changes.append(f"{prefix}{name} is {written[name]} there and {value} here")
    return changes
