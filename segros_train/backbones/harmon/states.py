"""Weights on disk: published files in each of their forms, and checkpoints of ours.

Published: `harmon_*.pth` holds the language model, the masked encoder and decoder and the projections,
`kl16.ckpt` the autoencoder without the prefix `vae.`. Either may be wrapped in one more dictionary, the
first may hold the autoencoder as well, and the tied output head may be absent. Anything else that is missing
or left over is an error.

Source: wusize/Harmon src/models/harmon_dev.py, src/models/mar/vae.py @ 4eb60876 (key names, wrapping)
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from segros_train.backbone import Realisation
from segros_train.backbones.harmon.config import HarmonConfig
from segros_train.backbones.harmon.model import HarmonModel
from segros_train.backbones.harmon.prompts import HarmonTokenizer
from segros_train.errors import PrerequisiteError
from segros_train.files import replace_file, write_json
from segros_train.types import BackboneCard

__all__ = [
    "Checkpoint",
    "build",
    "check_keys",
    "listed_changes",
    "published_state",
    "read_checkpoint",
    "read_state",
    "write_checkpoint",
]

FAMILY = "harmon"
TIED_HEAD = "llm.lm_head.weight"
EMBEDDING = "llm.model.embed_tokens.weight"
FUNCTION = ("llm", "mar", "vae", "vae_scale")
"""The parts of a configuration that decide what weights compute; the others are choices of a run."""
LISTED_KEYS = 20
# What torch and safetensors raise on a torn or foreign file; torch's reader of pickles lets list and key errors out.
DAMAGE = (OSError, EOFError, RuntimeError, LookupError, SafetensorError, pickle.UnpicklingError)


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint of ours holds."""

    state: Mapping[str, Tensor]
    realisation: Realisation
    tokenizer: HarmonTokenizer


def read_state(path: Path) -> dict[str, Tensor]:
    """Read named tensors from a safetensors file or a pickle, which is opened without running code.

    Raises:
        PrerequisiteError: If the file is damaged, or holds something else.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        values = torch.load(path, map_location="cpu", weights_only=True)
    except DAMAGE as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise PrerequisiteError(f"Cannot read the weights {path}: {reason} Fetch the file again.") from error
    for wrapper in ("state_dict", "model"):
        if isinstance(values, Mapping) and isinstance(values.get(wrapper), Mapping):
            values = values[wrapper]
    if not isinstance(values, Mapping) or not all(isinstance(value, Tensor) for value in values.values()):
        raise PrerequisiteError(f"{path} holds no named tensors; name a checkpoint.")
    return dict(values)


def published_state(files: Mapping[str, Path]) -> dict[str, Tensor]:
    """Read the published files of a card into one state with upstream's key names.

    Args:
        files: Paths by role: `"model"`, and `"vae"` unless the model's file holds the autoencoder.

    Raises:
        PrerequisiteError: If a file is damaged or the autoencoder is in neither.
    """
    state = read_state(files["model"])
    if any(key.startswith("vae.") for key in state):
        return state
    if "vae" not in files:
        raise PrerequisiteError(f"{files['model']} holds no autoencoder; put kl16.ckpt beside it.")
    return state | {f"vae.{key}": value for key, value in read_state(files["vae"]).items()}


def build(config: HarmonConfig, state: Mapping[str, Tensor], *, origin: str, device: str) -> HarmonModel:
    """Build the model in float32 from a state with upstream's key names.

    Args:
        config: Sizes.
        state: Weights; the tied output head may be absent.
        origin: Where the weights come from, for messages.
        device: Torch device.

    Raises:
        PrerequisiteError: If keys or shapes differ from the model's.
    """
    with init_empty_weights(include_buffers=False):
        model = HarmonModel(config)
    expected = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    if EMBEDDING in state:
        head = state.get(TIED_HEAD)
        if head is not None and not torch.equal(head, state[EMBEDDING]):
            raise PrerequisiteError(f"{origin}: {TIED_HEAD} differs from {EMBEDDING}, to which Harmon ties it.")
        state = {**state, TIED_HEAD: state[EMBEDDING]}
    check_keys(expected, state, origin, "Harmon")
    state = {key: value.to(device, torch.float32) for key, value in state.items()}
    model.load_state_dict(state, assign=True)
    model.llm.tie_weights()
    return model.to(device).eval()


def check_keys(expected: Mapping[str, tuple[int, ...]], state: Mapping[str, Tensor], origin: str, family: str) -> None:
    """Raise PrerequisiteError that lists what differs unless keys and shapes are the expected ones."""
    both = expected.keys() & state.keys()
    problems = {
        "missing": sorted(expected.keys() - state.keys()),
        "unexpected": sorted(state.keys() - expected.keys()),
        "of another shape": sorted(
            f"{key} {tuple(state[key].shape)} instead of {expected[key]}"
            for key in both
            if tuple(state[key].shape) != expected[key]
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
    model: HarmonModel,
    *,
    card: BackboneCard,
    tokenizer: HarmonTokenizer,
    realisation: Realisation,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write a checkpoint of ours; `config.json` comes last and marks it as whole.

    Args:
        directory: Created when absent.
        model: Weights, written without the tied output head.
        card: The card the model realises.
        tokenizer: Written as `tokenizer.json`.
        realisation: Choices the weights were trained under.
        dtype: Type on disk.

    Raises:
        PrerequisiteError: If the folder cannot be written.
    """
    state = {
        key: value.detach().to("cpu", dtype).contiguous()
        for key, value in model.state_dict().items()
        if key != TIED_HEAD
    }
    replace_file(directory / "model.safetensors", lambda path: save_file(state, path))
    replace_file(directory / "tokenizer.json", lambda path: tokenizer.tokenizer.save(str(path)))
    record = {
        "family": FAMILY,
        "card": card.name,
        "config": asdict(model.config),
        "realisation": asdict(realisation),
    }
    write_json(directory / "config.json", record)


def read_checkpoint(directory: Path, card: BackboneCard) -> Checkpoint:
    """Read a checkpoint of ours.

    Raises:
        PrerequisiteError: If it is damaged, of another card, or of another configuration.
    """
    path = directory / "config.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        config = HarmonConfig.from_dict(record["config"])
        realisation = Realisation(**record["realisation"])
        family, name = record["family"], record["card"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PrerequisiteError(f"{path} describes no checkpoint of segros: {error!r}.") from error
    if (family, name) != (FAMILY, card.name):
        raise PrerequisiteError(f"{directory} is a checkpoint of {name}, asked for {card.name}.")
    written, asked = ({name: asdict(value)[name] for name in FUNCTION} for value in (config, card.config))
    if changed := listed_changes(written, asked):
        raise PrerequisiteError(f"{directory} was written with another configuration: {'; '.join(changed)}.")
    tokenizer = HarmonTokenizer.from_file(directory / "tokenizer.json")
    return Checkpoint(read_state(directory / "model.safetensors"), realisation, tokenizer)


def listed_changes(written: Mapping[str, Any], asked: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Name the fields of a configuration that differ from those asked for."""
    changes = []
    for name, value in asked.items():
        if isinstance(value, Mapping) and isinstance(written[name], Mapping):
            changes += listed_changes(written[name], value, f"{prefix}{name}.")
        elif written[name] != value:
            changes.append(f"{prefix}{name} is {written[name]} there and {value} here")
    return changes
