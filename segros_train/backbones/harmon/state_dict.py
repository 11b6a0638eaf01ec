"""Weights on disk: published files in each of their forms.

Published: `harmon_*.pth` holds the language model, the masked encoder and decoder and the projections,
`kl16.ckpt` the autoencoder without the prefix `vae.`. Either may be wrapped in one more dictionary, the
first may hold the autoencoder as well, and the tied output head may be absent. Anything else that is missing
or left over is an error.

Source: wusize/Harmon src/models/harmon_dev.py, src/models/mar/vae.py @ 4eb60876 (key names, wrapping)
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from accelerate import init_empty_weights
from torch import Tensor

from segros_train.backbones.common.precision import Precision, WeightTypes
from segros_train.backbones.common.pretrained import check_keys, read_state
from segros_train.backbones.harmon.config import HarmonConfig
from segros_train.backbones.harmon.model import HarmonModel
from segros_train.errors import PrerequisiteError

__all__ = ["FUNCTION", "build", "published_state", "untied_state"]

TIED_HEAD = "llm.lm_head.weight"
EMBEDDING = "llm.model.embed_tokens.weight"
FUNCTION = ("llm", "mar", "vae", "vae_scale")
"""The parts of a configuration that decide what weights compute; the others are choices of a run."""


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


def build(
    config: HarmonConfig, state: Mapping[str, Tensor], *, origin: str, device: str, precision: Precision = "fp32"
) -> HarmonModel:
    """Build the model from a state with upstream's key names.

    Args:
        config: Sizes.
        state: Weights; the tied output head may be absent.
        origin: Where the weights come from, for messages.
        device: Torch device.
        precision: Of the weights, see `precision`.

    Raises:
        PrerequisiteError: If keys or shapes differ from the model's.
    """
    with init_empty_weights(include_buffers=False):
        model = HarmonModel(config)
    if EMBEDDING in state:
        head = state.get(TIED_HEAD)
        if head is not None and not torch.equal(head, state[EMBEDDING]):
            raise PrerequisiteError(f"{origin}: {TIED_HEAD} differs from {EMBEDDING}, to which Harmon ties it.")
        state = {**state, TIED_HEAD: state[EMBEDDING]}
    check_keys(model.state_dict(), state, origin, "Harmon")
    types = WeightTypes(model, precision, device=device, autoencoder="vae")
    state = {key: value.to(device, types[key]) for key, value in state.items()}
    model.load_state_dict(state, assign=True)
    model.llm.tie_weights()
    return model.to(device).eval()


def untied_state(model: HarmonModel) -> dict[str, Tensor]:
    """Return the weights without the tied output head, as checkpoints hold them."""
    return {key: value for key, value in model.state_dict().items() if key != TIED_HEAD}
