"""Weights on disk: published files in each of their forms.

Published: the multimodal language model, the image generator and the autoencoder come from their own repositories;
OpenUni's file holds what its training changed and lies over them, in the order in which files are given. It may
also hold all the rest. A key that nothing takes, a shape that differs and a part that no file supplies are errors.

Names of the language model differ between files: transformers' own, now and before, and those of InternVL's remote
code, which OpenUni's files take below `lmm.` and whose fused attention projections are split here.

Source: wusize/OpenUni scripts/train.py, src/models/openuni @ d1703fc (key names, what is saved)
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from accelerate import init_empty_weights
from torch import Tensor

from segros_train.backbones.common.precision import Precision, WeightTypes
from segros_train.backbones.common.pretrained import check_keys, read_state
from segros_train.backbones.openuni.config import OpenUniConfig
from segros_train.backbones.openuni.model import OpenUniModel
from segros_train.errors import PrerequisiteError

__all__ = ["build", "check_settings", "hub_state", "is_frozen", "our_names", "overlaid", "upstream_names"]

TRAINED = ("meta_queries", "connector.", "projector.", "transformer.")
FROZEN = ("lmm.", "vae.")
OVERLAID = ("meta_queries", "connector.", "projector.")
"""What only OpenUni's own files supply."""
PARTS = ("q", "k", "v")
HUB_ROLES = ("lmm", "transformer", "vae")

logger = logging.getLogger(__name__)

_LAYER = r"encoder\.layers?\.(\d+)\."
_TO_OURS = (
    # transformers before version 5, and InternVL's remote code
    (r"language_model\.model\.", "model.language_model."),
    (r"language_model\.lm_head\.", "lm_head."),
    (r"(vision_tower|multi_modal_projector)\.", r"model.\1."),
    (r"mlp1\.0\.", "model.multi_modal_projector.layer_norm."),
    (r"mlp1\.1\.", "model.multi_modal_projector.linear_1."),
    (r"mlp1\.3\.", "model.multi_modal_projector.linear_2."),
    (r"vision_model\.embeddings\.class_embedding", "model.vision_tower.embeddings.cls_token"),
    (r"vision_model\.embeddings\.position_embedding", "model.vision_tower.embeddings.position_embeddings"),
    (r"vision_model\.embeddings\.patch_embedding\.", "model.vision_tower.embeddings.patch_embeddings.projection."),
    (rf"vision_model\.{_LAYER}attn\.proj\.", r"model.vision_tower.encoder.layer.\1.attention.projection_layer."),
    (rf"vision_model\.{_LAYER}norm1\.", r"model.vision_tower.encoder.layer.\1.layernorm_before."),
    (rf"vision_model\.{_LAYER}norm2\.", r"model.vision_tower.encoder.layer.\1.layernorm_after."),
    (rf"vision_model\.{_LAYER}ls([12])", r"model.vision_tower.encoder.layer.\1.lambda_\2"),
    (rf"vision_model\.{_LAYER}(attn|mlp)\.", r"model.vision_tower.encoder.layer.\1.\2."),
)
_TO_UPSTREAM = (
    (r"model\.language_model\.", "language_model.model."),
    (r"lm_head\.", "language_model.lm_head."),
    (r"model\.multi_modal_projector\.layer_norm\.", "mlp1.0."),
    (r"model\.multi_modal_projector\.linear_1\.", "mlp1.1."),
    (r"model\.multi_modal_projector\.linear_2\.", "mlp1.3."),
    (r"model\.vision_tower\.embeddings\.cls_token", "vision_model.embeddings.class_embedding"),
    (r"model\.vision_tower\.embeddings\.position_embeddings", "vision_model.embeddings.position_embedding"),
    (r"model\.vision_tower\.embeddings\.patch_embeddings\.projection\.", "vision_model.embeddings.patch_embedding."),
    (rf"model\.vision_tower\.{_LAYER}attention\.projection_layer\.", r"vision_model.encoder.layers.\1.attn.proj."),
    (rf"model\.vision_tower\.{_LAYER}layernorm_before\.", r"vision_model.encoder.layers.\1.norm1."),
    (rf"model\.vision_tower\.{_LAYER}layernorm_after\.", r"vision_model.encoder.layers.\1.norm2."),
    (rf"model\.vision_tower\.{_LAYER}lambda_([12])", r"vision_model.encoder.layers.\1.ls\2"),
    (rf"model\.vision_tower\.{_LAYER}", r"vision_model.encoder.layers.\1."),
)
_FUSED = re.compile(r"(model\.vision_tower\.encoder\.layer\.\d+\.)attn\.qkv\.(weight|bias)")
_SPLIT = re.compile(r"(model\.vision_tower\.encoder\.layer\.\d+\.)attention\.([qkv])_proj\.(weight|bias)")


def is_frozen(key: str) -> bool:
    """Tell whether a weight is of the language model or the autoencoder, which training leaves as they are."""
    return not key.startswith(TRAINED)


def _renamed(key: str, rules: Iterable[tuple[str, str]]) -> str:
    for pattern, replacement in rules:
        new, count = re.subn(f"^{pattern}", replacement, key)
        if count:
            return new
    return key


def our_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state with the key names of `OpenUniModel`; the language model's may be of any published form."""
    named: dict[str, Tensor] = {}
    for key, value in state.items():
        if not key.startswith("lmm."):
            named[key] = value
            continue
        new = _renamed(key.removeprefix("lmm."), _TO_OURS)
        fused = _FUSED.fullmatch(new)
        if fused is None:
            named[f"lmm.{new}"] = value
            continue
        for part, rows in zip(PARTS, value.chunk(3), strict=True):
            named[f"lmm.{fused[1]}attention.{part}_proj.{fused[2]}"] = rows
    return named


def upstream_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state of `OpenUniModel` with the key names of OpenUni's files."""
    named: dict[str, Tensor] = {}
    for key, value in state.items():
        if not key.startswith("lmm."):
            named[key] = value
            continue
        inner = key.removeprefix("lmm.")
        split = _SPLIT.fullmatch(inner)
        if split is None:
            named[f"lmm.{_renamed(inner, _TO_UPSTREAM)}"] = value
        elif split[2] == PARTS[0]:
            rows = [state[f"lmm.{split[1]}attention.{part}_proj.{split[3]}"] for part in PARTS]
            layer = _renamed(split[1], _TO_UPSTREAM)
            named[f"lmm.{layer}attn.qkv.{split[3]}"] = torch.cat(rows)
    return named


def hub_state(files: Mapping[str, Path]) -> dict[str, Tensor]:
    """Read the models that OpenUni is made of into one state with the key names of `OpenUniModel`.

    Args:
        files: Paths by role: `"lmm"`, `"transformer"` and `"vae"`.

    Raises:
        PrerequisiteError: If a file is damaged.
    """
    state: dict[str, Tensor] = {}
    for role in HUB_ROLES:
        part = our_names({f"{role}.{key}": value for key, value in read_state(files[role]).items()})
        logger.info("%s supplies %d tensors of %s.", files[role], len(part), role)
        state |= part
    return state


def overlaid(state: Mapping[str, Tensor], overlays: Iterable[Path]) -> dict[str, Tensor]:
    """Lay OpenUni's own files over a state, each over what came before.

    Raises:
        PrerequisiteError: If a file is damaged, or none of them holds queries, connector and projection.
    """
    own: dict[str, Tensor] = {}
    names = []
    for path in overlays:
        part = our_names(read_state(path))
        supplied = sorted({key.partition(".")[0] for key in part})
        logger.info("%s supplies %d tensors: %s.", path, len(part), ", ".join(supplied))
        own |= part
        names.append(str(path))
    absent = [prefix.rstrip(".") for prefix in OVERLAID if not any(key.startswith(prefix) for key in own)]
    if absent:
        raise PrerequisiteError(
            f"{' and '.join(names)} hold no {', '.join(absent)}. Put the file of OpenUni's base model beside the "
            "fine-tuned one."
        )
    return {**state, **own}


def check_settings(config: OpenUniConfig, files: Mapping[str, Path]) -> None:
    """Compare the settings that published files carry with a card's.

    Raises:
        PrerequisiteError: If the autoencoder's scale or channels, or the shift of the noise levels, are others.
    """
    expected = {
        "vae-config": {
            "scaling_factor": config.autoencoder.scale,
            "latent_channels": config.autoencoder.latent_channels,
            "encoder_block_out_channels": list(config.autoencoder.channels),
        },
        "scheduler": {"flow_shift": config.flow_shift, "prediction_type": "flow_prediction", "use_flow_sigmas": True},
    }
    differing = []
    for role, values in expected.items():
        if role not in files:
            continue
        try:
            found = json.loads(files[role].read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise PrerequisiteError(f"Cannot read {files[role]}: {error}. Fetch it again.") from error
        differing += [
            f"{files[role]} has {name} {found.get(name)}, the card {value}"
            for name, value in values.items()
            if found.get(name) != value
        ]
    if differing:
        raise PrerequisiteError(f"{'; '.join(differing)}. Take the files that the card names, or change the card.")


def build(
    config: OpenUniConfig, state: Mapping[str, Tensor], *, origin: str, device: str, precision: Precision = "fp32"
) -> OpenUniModel:
    """Build the model from a whole state with our key names.

    What is frozen, and is not read in bf16, is held in float32 on a CPU and in the type of its file elsewhere; so is
    the autoencoder in any precision.

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
        model = OpenUniModel(config)
    check_keys(model.state_dict(), state, origin, "OpenUni")
    types = WeightTypes(model, precision, device=device, autoencoder="vae")
    kept = () if device == "cpu" else FROZEN if types.matrices == torch.float32 else ("vae.",)
    typed = {key: value.to(device, value.dtype if key.startswith(kept) else types[key]) for key, value in state.items()}
    model.load_state_dict(typed, assign=True)
    model.lmm.requires_grad_(False)
    model.vae.requires_grad_(False)
    return model.to(device).eval()
