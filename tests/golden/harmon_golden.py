"""The golden set of Harmon: its model, built from the folder's own sizes, and its tensors."""

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

from segros_train.backbones.harmon.adapter import visible_indices
from segros_train.backbones.harmon.config import DiffusionConfig, HarmonConfig, LanguageConfig, MarConfig, VaeConfig
from segros_train.backbones.harmon.model import HarmonModel


def attention_levels(resolutions: list[int], vae: Mapping[str, Any]) -> tuple[int, ...]:
    """Translate resolutions of the nominal image into levels."""
    sides = [vae["nominal_resolution"] // 2**level for level in range(len(vae["ch_mult"]))]
    return tuple(level for level, side in enumerate(sides) if side in resolutions)


def vae_config(vae: Mapping[str, Any]) -> VaeConfig:
    return VaeConfig(
        embed_dim=vae["embed_dim"],
        ch=vae["ch"],
        ch_mult=tuple(vae["ch_mult"]),
        num_res_blocks=vae["num_res_blocks"],
        encoder_attention_levels=attention_levels(vae["enc_attn_resolutions"], vae),
        decoder_attention_levels=attention_levels(vae["dec_attn_resolutions"], vae),
    )


def mar_config(mar: Mapping[str, Any]) -> MarConfig:
    side = mar["img_size"] // mar["vae_stride"] // mar["patch_size"]
    return MarConfig(
        encoder_width=mar["encoder_embed_dim"],
        encoder_depth=mar["encoder_depth"],
        encoder_heads=mar["encoder_num_heads"],
        decoder_width=mar["decoder_embed_dim"],
        decoder_depth=mar["decoder_depth"],
        decoder_heads=mar["decoder_num_heads"],
        diffusion=DiffusionConfig(
            depth=mar["diffloss_d"],
            width=mar["diffloss_w"],
            num_sampling_steps=int(mar["num_sampling_steps"]),
            batch_mul=mar["diffusion_batch_mul"],
        ),
        base_grid=(side, side),
        buffer_size=mar["buffer_size"],
        mlp_ratio=mar["mlp_ratio"],
        mask_ratio_min=mar["mask_ratio_min"],
        attention_dropout=mar["attn_dropout"],
        projection_dropout=mar["proj_dropout"],
        num_classes=mar["class_num"],
    )


def harmon_config(values: Mapping[str, Any]) -> HarmonConfig:
    llm = values["llm"]
    language = LanguageConfig(
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
    return HarmonConfig(
        llm=language,
        mar=mar_config(values["mar"]),
        vae=vae_config(values["vae"]),
        vae_scale=values["vae_scale"],
        grad_scale=values["grad_scale"],
    )


@dataclass(frozen=True)
class Golden:
    """The golden set: the model built from its weights, tensors by name, and what stands beside them."""

    model: HarmonModel
    tensors: Mapping[str, Tensor]
    record: Mapping[str, Any]

    def group(self, name: str) -> dict[str, Tensor]:
        """Return the tensors below a name; skip where the set has none."""
        found = {key[len(name) + 1 :]: value for key, value in self.tensors.items() if key.startswith(f"{name}.")}
        if not found:
            pytest.skip(f"the golden set has no group {name}")
        return found

    def extra(self, name: str) -> Any:
        """Return what stands beside the tensors under a name; skip where the set lacks it."""
        if name not in self.record.get("extra", {}):
            pytest.skip(f"the golden set has no extra {name}")
        return self.record["extra"][name]

    def repeated(self, rows: Tensor) -> Tensor:
        """Split copy-major rows into [repetitions, rows, ...]."""
        return rows.unflatten(0, (self.model.config.mar.diffusion.batch_mul, -1))

    def embed(self, ids: Tensor) -> Tensor:
        return self.model.llm.model.embed_tokens(ids)

    def masked_loss(self, conditions: Tensor, latents: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        """Return the loss over masked cells with the recorded timesteps and noise."""
        kept = given["mask"].flatten().bool()
        return self.model.mar.diffloss.loss(
            conditions.flatten(0, 1)[kept],
            latents.flatten(0, -2)[kept],
            timesteps=self.repeated(given["t"])[:, kept],
            noise=self.repeated(given["noise"])[:, kept],
        )

    def text_to_image_loss(self, given: Mapping[str, Tensor]) -> Tensor:
        """Return the loss from pixels and ids."""
        latents = self.model.encode_images(given["pixel_values"])
        visible = visible_indices(given["mask"].bool())
        text = self.embed(given["input_ids"])
        conditions = self.model.conditions(text, given["attention_mask"].bool(), latents, visible)
        return self.masked_loss(conditions, latents, given)

    def gradients(self, loss: Tensor) -> dict[str, Tensor | None]:
        """Return the gradient of every parameter by name."""
        self.model.zero_grad(set_to_none=True)
        loss.backward()
        return {name: parameter.grad for name, parameter in self.model.named_parameters()}


def load_golden(folder: Path, *, wide: bool = True) -> Golden:
    """Build the set's model and read its tensors, in float64 (see `bounds`) or as they were recorded."""
    model = HarmonModel(harmon_config(json.loads((folder / "config.json").read_text())))
    model.load_state_dict(load_file(folder / "weights.safetensors"))
    record = json.loads((folder / "cases.json").read_text())
    tensors = load_file(folder / "cases.safetensors")
    if not wide:
        return Golden(model.eval(), tensors, record)
    return Golden(model.double().eval(), widened(tensors), record)
