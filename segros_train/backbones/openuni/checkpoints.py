"""Checkpoints of ours: what was trained, and, where no repository publishes the rest, all of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from segros_train.backbone import Realisation
from segros_train.backbones.openuni.config import OpenUniConfig
from segros_train.backbones.openuni.model import OpenUniModel
from segros_train.backbones.openuni.prompts import OpenUniTokenizer
from segros_train.backbones.openuni.states import is_frozen, read_state
from segros_train.errors import PrerequisiteError
from segros_train.files import replace_file, write_json
from segros_train.types import BackboneCard

__all__ = ["Checkpoint", "read_checkpoint", "write_checkpoint"]

FAMILY = "openuni"
FUNCTION = ("llm", "connector", "sana", "vision", "autoencoder", "num_queries", "flow_shift")
"""The parts of a configuration that decide what weights compute; the others are choices of a run."""


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint of ours holds."""

    state: Mapping[str, Tensor]
    realisation: Realisation


def write_checkpoint(
    directory: Path,
    model: OpenUniModel,
    *,
    card: BackboneCard,
    tokenizer: OpenUniTokenizer,
    realisation: Realisation,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write a checkpoint of ours; `config.json` comes last and marks it as whole.

    Args:
        directory: Created when absent.
        model: Weights; what is frozen is left out where the card names its published files.
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
        if not (card.weights and is_frozen(key))
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
        config = OpenUniConfig.from_dict(record["config"])
        realisation = Realisation(**record["realisation"])
        family, name = record["family"], record["card"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PrerequisiteError(f"{path} describes no checkpoint of segros: {error!r}.") from error
    if (family, name) != (FAMILY, card.name):
        raise PrerequisiteError(f"{directory} is a checkpoint of {name}, asked for {card.name}.")
    written, asked = ({part: asdict(value)[part] for part in FUNCTION} for value in (config, card.config))
    if changed := _changes(written, asked):
        raise PrerequisiteError(f"{directory} was written with another configuration: {'; '.join(changed)}.")
    return Checkpoint(read_state(directory / "model.safetensors"), realisation)


def _changes(written: Mapping[str, Any], asked: Mapping[str, Any], prefix: str = "") -> list[str]:
    changes = []
    for name, value in asked.items():
        if isinstance(value, Mapping):
            changes += _changes(written[name], value, f"{prefix}{name}.")
        elif written[name] != value:
            changes.append(f"{prefix}{name} is {written[name]} there and {value} here")
    return changes
