"""Weights on disk: published files in each of their forms.

Upstream keeps three sets: the language model with the projector (`showo.*`, `mm_projector.*`), the tokenizer of images
(`encoder.*`, `decoder.*`, `quantize.*`) and CLIP (`vision_model.*` and, in its own repository, a text tower that
Show-o never reads). Apart from that text tower, anything missing or left over is an error.

Source: showlab/Show-o models/modeling_utils.py, models/modeling_magvitv2.py @ 45a5a2de (key names, file names)
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from accelerate import init_empty_weights
from torch import Tensor

from segros_train.backbones.common.precision import Precision, WeightTypes
from segros_train.backbones.common.pretrained import check_keys, read_state
from segros_train.backbones.showo.config import ShowoConfig
from segros_train.backbones.showo.model import ShowoModel
from segros_train.backbones.showo.prompts import ShowoTokenizer
from segros_train.backbones.showo.vq import Quantizer
from segros_train.errors import PrerequisiteError

__all__ = ["FUNCTION", "build", "own_names", "published_names", "published_state", "tokenizer_of"]

VQ_PARTS = ("encoder.", "decoder.", "quantize.")
TOWER = "vision_model."
UNUSED_CLIP = ("text_model.", "text_projection.", "visual_projection.", "logit_scale")
DERIVED = ("position_ids",)
FUNCTION = ("llm", "vq", "clip", "system_prompt", "max_caption_tokens")
"""The parts of a configuration that decide what weights compute; the others are choices of a run."""


def published_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state of `ShowoModel` under upstream's key names."""
    names = {"vq.": "", "clip.": TOWER}
    renamed = {}
    for key, value in state.items():
        prefix = next((prefix for prefix in names if key.startswith(prefix)), "")
        renamed[names.get(prefix, "") + key.removeprefix(prefix)] = value
    return renamed


def own_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state of upstream's key names under those of `ShowoModel`; CLIP's text tower is left out."""
    renamed = {}
    for key, value in state.items():
        if key.startswith(UNUSED_CLIP) or key.endswith(DERIVED):
            continue
        if key.startswith(VQ_PARTS):
            renamed[f"vq.{key}"] = value
        else:
            renamed[f"clip.{key.removeprefix(TOWER)}" if key.startswith(TOWER) else key] = value
    return renamed


def published_state(files: Mapping[str, Path]) -> dict[str, Tensor]:
    """Read the published files of a card into one state with upstream's key names.

    Args:
        files: Paths by role: `"model"`, and `"vq"` and `"clip"` unless the model's file holds them.

    Raises:
        PrerequisiteError: If a file is damaged.
    """
    state: dict[str, Tensor] = {}
    for role in ("clip", "vq", "model"):
        if role in files:
            state |= read_state(files[role])
    return state


def build(
    config: ShowoConfig, state: Mapping[str, Tensor], *, origin: str, device: str, precision: Precision = "fp32"
) -> ShowoModel:
    """Build the model from a state with upstream's key names.

    Args:
        config: Sizes.
        state: Weights.
        origin: Where the weights come from, for messages.
        device: Torch device.
        precision: Of the weights, see `precision`.

    Raises:
        PrerequisiteError: If keys or shapes differ from the model's.
    """
    with init_empty_weights(include_buffers=False):
        model = ShowoModel(config)
    given = published_names(own_names(state))
    check_keys(published_names(model.state_dict()), given, origin, "Show-o")
    types = WeightTypes(model, precision, device=device, autoencoder="vq")
    own = {
        key: value.to(device, value.dtype if "power_vals" in key else types[key])
        for key, value in own_names(given).items()
    }
    model.load_state_dict(own, assign=True)
    codebook = Quantizer(config.vq.num_bits)
    if not all(
        torch.equal(value, model.vq.quantize.get_buffer(name).cpu()) for name, value in codebook.named_buffers()
    ):
        raise PrerequisiteError(f"{origin} holds another codebook than signs, highest bit first.")
    for frozen in (model.vq, getattr(model, "clip", None)):
        if frozen is not None:
            frozen.requires_grad_(False)
    return model.to(device).eval()


def tokenizer_of(config: ShowoConfig, path: Path) -> ShowoTokenizer:
    """Read the tokenizer of a configuration.

    Raises:
        PrerequisiteError: If it cannot be read, or has more ids than the model.
    """
    return ShowoTokenizer.from_file(
        path, text_vocab_size=config.llm.text_vocab_size, system_prompt=config.system_prompt
    )
