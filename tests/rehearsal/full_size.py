"""Backbones of the official sizes without a number in them, for counting."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
from accelerate import init_empty_weights
from tokenizers import Tokenizer, models, pre_tokenizers

from segros_eval.pipeline.catalog import Catalog, load_catalog
from segros_train.backbone import Backbone
from segros_train.backbones.common.precision import WeightTypes
from segros_train.types import BackboneCard

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>")
NAMES = ("harmon-0.5b", "harmon-1.5b", "show-o-256", "show-o-512", "openuni-1.6b", "openuni-3.6b")


@cache
def catalog() -> Catalog:
    """Return what the repository declares."""
    return load_catalog(Path(__file__).parents[2] / "tasks")


def tokenizer_file(folder: Path) -> Path:
    """Write a tokenizer that makes a token of each word: only lengths count here."""
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, **{name: 1 + i for i, name in enumerate(SPECIAL)}}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(list(SPECIAL))
    path = folder / "tokenizer.json"
    tokenizer.save(str(path))
    return path


def empty_backbone(name: str, folder: Path) -> Backbone:
    """Build a backbone of the official size on no device, its frozen parts in the types of the published files."""
    card: BackboneCard = catalog().backbones[name]
    path = tokenizer_file(folder)
    build = {"harmon": _harmon, "showo": _showo, "openuni": _openuni}[card.family]
    with init_empty_weights(include_buffers=False):
        backbone = build(card, path)
    if card.family == "harmon":
        backbone.model.llm.tie_weights()  # Outside: making a parameter empty unties it.
    return backbone


def for_drawing(backbone: Backbone) -> Backbone:
    """Give the weights of an empty backbone the types in which they are read for drawing on a GPU."""
    model = backbone.get_submodule("model")
    types = WeightTypes(model, "bf16", device="cpu", autoencoder="vq" if hasattr(model, "vq") else "vae")
    for name, weight in model.named_parameters():
        weight.data = weight.data.to(types[name])
    return backbone


def _harmon(card: BackboneCard, path: Path) -> Backbone:
    from segros_train.backbones.harmon.adapter import Harmon
    from segros_train.backbones.harmon.model import HarmonModel
    from segros_train.backbones.harmon.prompts import HarmonTokenizer

    model = HarmonModel(card.config)
    return Harmon(card, model, HarmonTokenizer.from_file(path))


def _showo(card: BackboneCard, path: Path) -> Backbone:
    from segros_train.backbones.showo.adapter import Showo
    from segros_train.backbones.showo.model import ShowoModel
    from segros_train.backbones.showo.state_dict import tokenizer_of

    model = ShowoModel(card.config)
    for part in (model.vq, model.clip):
        if part is not None:
            part.requires_grad_(False)
    return Showo(card, model, tokenizer_of(card.config, path))


def _openuni(card: BackboneCard, path: Path) -> Backbone:
    from segros_train.backbones.openuni.adapter import OpenUni
    from segros_train.backbones.openuni.model import OpenUniModel
    from segros_train.backbones.openuni.prompts import OpenUniTokenizer

    model = OpenUniModel(card.config)
    for part, dtype in ((model.lmm, torch.bfloat16), (model.vae, torch.float32)):
        part.requires_grad_(False).to(dtype)
    return OpenUni(card, model, OpenUniTokenizer.from_file(path))
