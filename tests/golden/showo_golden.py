"""The golden set of Show-o: its model and tokenizer, built from the folder's own sizes, and its tensors."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from bounds import widened
from safetensors.torch import load_file
from torch import Tensor

from segros_train.backbones.showo.config import ClipConfig, LanguageConfig, ShowoConfig, VqConfig
from segros_train.backbones.showo.model import ShowoModel
from segros_train.backbones.showo.prompts import ShowoTokenizer
from segros_train.backbones.showo.state_dict import build


def showo_config(values: Mapping[str, Any]) -> ShowoConfig:
    llm, vq, clip = values["llm"], values["vq"], values["clip"]
    return ShowoConfig(
        llm=LanguageConfig(
            hidden_size=llm["hidden_size"],
            intermediate_size=llm["intermediate_size"],
            num_layers=llm["num_hidden_layers"],
            num_heads=llm["num_attention_heads"],
            text_vocab_size=values["llm_vocab_size"],
            max_positions=llm["max_position_embeddings"],
            rope_theta=llm["rope_theta"],
            rotary_share=llm["partial_rotary_factor"],
            layer_norm_eps=llm["layer_norm_eps"],
        ),
        vq=VqConfig(
            num_bits=vq["z_channels"],
            ch=vq["ch"],
            encoder_mult=tuple(vq["enc_ch_mult"]),
            encoder_blocks=tuple(vq["enc_num_res_blocks"]),
            decoder_mult=tuple(vq["dec_ch_mult"]),
            decoder_blocks=tuple(vq["dec_num_res_blocks"]),
        ),
        clip=ClipConfig(
            hidden_size=clip["hidden_size"],
            intermediate_size=clip["intermediate_size"],
            num_layers=clip["num_hidden_layers"],
            num_heads=clip["num_attention_heads"],
            image_size_px=clip["image_size"],
            patch_size_px=clip["patch_size"],
        ),
        max_caption_tokens=values["max_seq_length"],
        min_masking_ratio=values["min_masking_rate"],
    )


@dataclass(frozen=True)
class Golden:
    """The golden set: model, tokenizer, tensors and values by name, and the folder's own sizes."""

    model: ShowoModel
    tokenizer: ShowoTokenizer
    tensors: Mapping[str, Tensor]
    values: Mapping[str, Any]
    sizes: Mapping[str, Any]
    meanings: Mapping[str, str]

    def columns(self, name: str) -> list[int]:
        """Return the columns that the description of a tensor lists, like `columns 0,5,607..612`."""
        listed = re.search(r"columns ([\d,.]+\d)", self.meanings[name])
        assert listed is not None, self.meanings[name]
        spans = [part.split("..") for part in listed[1].split(",")]
        return [column for span in spans for column in range(int(span[0]), int(span[-1]) + 1)]

    def rows(self, name: str) -> dict[str, slice]:
        """Return the rows of each task that the description of a batch counts, like `rows: 3 t2i, 1 lm, 2 mmu`."""
        found, start = {}, 0
        for count, task in re.findall(r"(\d+) (t2i|lm|mmu)\b", self.meanings[name]):
            found[task] = slice(start, start := start + int(count))
        assert found.keys() == {"t2i", "lm", "mmu"} and start == len(self.tensors[name]), self.meanings[name]
        return found

    def group(self, name: str) -> dict[str, Tensor]:
        """Return the tensors below a name; skip where the set has none."""
        found = {key[len(name) + 1 :]: value for key, value in self.tensors.items() if key.startswith(f"{name}.")}
        if not found:
            pytest.skip(f"the golden set has no group {name}")
        return found

    @property
    def limit(self) -> int:
        """Largest number of ids of a drawing prompt, the task token included."""
        return int(self.sizes["max_seq_length"]) + 1

    @property
    def num_cells(self) -> int:
        return int(self.sizes["num_vq_tokens"])

    @property
    def side(self) -> int:
        return int(self.num_cells**0.5)

    def question(self, ids: list[int]) -> str:
        """Return the question between the words of the template around it."""
        start, end = self.tokenizer.ids("USER:"), self.tokenizer.ids("ASSISTANT:")
        place = next(i for i in range(len(ids)) if ids[i : i + len(start)] == start) + len(start)
        assert ids[-len(end) :] == end
        return self.tokenizer.text(ids[place : -len(end)])

    def to_codes(self, ids: Tensor) -> Tensor:
        """Turn image ids into codes, -1 where hidden."""
        return torch.where(ids == self.model.config.mask_id, -1, ids - self.model.config.image_offset)


def load_golden(folder: Path) -> Golden:
    """Build the set's model from published key names and read its tensors, in float64 (see `bounds`)."""
    sizes = json.loads((folder / "config.json").read_text())
    config = showo_config(sizes)
    model = build(config, load_file(folder / "weights.safetensors"), origin=str(folder), device="cpu")
    record = json.loads((folder / "cases.json").read_text())
    tokenizer = ShowoTokenizer.from_file(folder / "tokenizer.json", text_vocab_size=config.llm.text_vocab_size)
    return Golden(
        model.double().eval(),
        tokenizer,
        widened(load_file(folder / "cases.safetensors")),
        record["values"],
        sizes,
        record["tensors"],
    )
