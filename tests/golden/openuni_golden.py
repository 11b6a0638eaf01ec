"""The golden set of OpenUni: its model, built from the folder's own sizes, its tokenizer and its tensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from bounds import widened
from safetensors.torch import load_file
from torch import Tensor

from segros_train.backbones.openuni.config import (
    AutoencoderConfig,
    ConnectorConfig,
    LanguageConfig,
    OpenUniConfig,
    SanaConfig,
    VisionConfig,
)
from segros_train.backbones.openuni.model import OpenUniModel
from segros_train.backbones.openuni.prompts import OpenUniTokenizer
from segros_train.backbones.openuni.state_dict import build, our_names


def vision_config(lmm: Mapping[str, Any]) -> VisionConfig:
    vision = lmm["vision_config"]
    return VisionConfig(
        hidden_size=vision["hidden_size"],
        intermediate_size=vision["intermediate_size"],
        num_layers=vision["num_hidden_layers"],
        num_heads=vision["num_attention_heads"],
        image_size_px=vision["image_size"],
        patch_size_px=vision["patch_size"],
        layer_norm_eps=vision["layer_norm_eps"],
    )


def language_config(llm: Mapping[str, Any]) -> LanguageConfig:
    return LanguageConfig(
        hidden_size=llm["hidden_size"],
        intermediate_size=llm["intermediate_size"],
        num_layers=llm["num_hidden_layers"],
        num_heads=llm["num_attention_heads"],
        num_kv_heads=llm["num_key_value_heads"],
        vocab_size=llm["vocab_size"],
        max_positions=llm["max_position_embeddings"],
        rope_theta=llm["rope_theta"],
        rms_norm_eps=llm["rms_norm_eps"],
    )


def sana_config(sana: Mapping[str, Any]) -> SanaConfig:
    return SanaConfig(
        num_heads=sana["num_attention_heads"],
        head_dim=sana["attention_head_dim"],
        num_layers=sana["num_layers"],
        num_cross_heads=sana["num_cross_attention_heads"],
        cross_head_dim=sana["cross_attention_head_dim"],
        caption_channels=sana["caption_channels"],
        mlp_ratio=sana["mlp_ratio"],
        norm_eps=sana["norm_eps"],
    )


def autoencoder_config(vae: Mapping[str, Any]) -> AutoencoderConfig:
    return AutoencoderConfig(
        latent_channels=vae["latent_channels"],
        channels=tuple(vae["encoder_block_out_channels"]),
        encoder_layers=tuple(vae["encoder_layers_per_block"]),
        decoder_layers=tuple(vae["decoder_layers_per_block"]),
        num_residual_levels=vae["encoder_block_types"].count("ResBlock"),
        attention_head_dim=vae["attention_head_dim"],
        scale=vae["scaling_factor"],
    )


def openuni_config(values: Mapping[str, Any]) -> OpenUniConfig:
    connector = values["connector"]
    return OpenUniConfig(
        llm=language_config(values["lmm"]["llm_config"]),
        connector=ConnectorConfig(
            intermediate_size=connector["intermediate_size"],
            num_heads=connector["num_attention_heads"],
            num_layers=connector["num_hidden_layers"],
            layer_norm_eps=connector["layer_norm_eps"],
        ),
        sana=sana_config(values["sana"]),
        vision=vision_config(values["lmm"]),
        autoencoder=autoencoder_config(values["vae"]),
        num_queries=values["num_queries"],
        flow_shift=values["scheduler"]["flow_shift"],
        max_text_tokens=values["text_max_length"],
        max_tokens=values["max_length"],
    )


@dataclass(frozen=True)
class Golden:
    """The golden set: the model built from its weights, its tokenizer, tensors by name, and its record."""

    model: OpenUniModel
    tokenizer: OpenUniTokenizer
    tensors: Mapping[str, Tensor]
    record: Mapping[str, Any]
    values: Mapping[str, Any]

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.tensors:
            pytest.skip(f"the golden set has no tensor {name}")
        return self.tensors[name]

    def text(self, name: str) -> str:
        if name not in self.record["strings"]:
            pytest.skip(f"the golden set has no text {name}")
        return str(self.record["strings"][name])

    def numbered(self, prefix: str) -> list[str]:
        """Return the numbers that follow a prefix among the names of tensors and texts."""
        names = (*self.tensors, *self.record["strings"])
        found = {name.removeprefix(prefix) for name in names if name.startswith(prefix)}
        return sorted(name for name in found if name.isdecimal())

    def steps(self) -> int:
        return int(self.values["sampling"]["steps"])

    def prompt(self, ids: Tensor, images: Tensor | None = None) -> Tensor:
        """Embed ids; the visual embeddings of images stand where the image token does."""
        rows = self.model.embed_ids(ids)
        if images is None:
            return rows
        seen = self.model.see(images).flatten(0, 1)
        return rows.masked_scatter((ids == self.tokenizer.image_id).unsqueeze(-1), seen)

    def conditions(self, ids: Tensor, valid: Tensor, images: Tensor | None = None) -> Tensor:
        prefix = self.model.read(self.prompt(ids, images), valid.bool())
        return self.model.condition(self.model.query(prefix))


def load_golden(folder: Path) -> Golden:
    """Build the set's model and read its tensors, in float64 (see `bounds`)."""
    values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    state = our_names(load_file(folder / "weights.safetensors"))
    model = build(openuni_config(values), state, origin=str(folder), device="cpu")
    record = json.loads((folder / "cases.json").read_text(encoding="utf-8"))
    tokenizer = OpenUniTokenizer.from_file(folder / "tokenizer.json")
    return Golden(model.double(), tokenizer, widened(load_file(folder / "cases.safetensors")), record, values)
