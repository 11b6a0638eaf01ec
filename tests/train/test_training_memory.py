"""What Show-o and OpenUni keep and compute in a training step: recomputation, precision of streams, work left out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import openuni_tiny
import pytest
import showo_tiny
import torch
from steps import embed
from torch import Tensor, nn
from torch.nn import functional

from segros_train.backbone import Backbone, Conditioning
from segros_train.backbones.common.dialogues import IGNORED
from segros_train.backbones.openuni.adapter import OpenUni
from segros_train.backbones.openuni.config import OpenUniConfig
from segros_train.backbones.showo import model as showo_model
from segros_train.backbones.showo.adapter import Showo
from segros_train.backbones.showo.config import ShowoConfig
from segros_train.method import Method
from segros_train.methods.reca import Reca
from segros_train.methods.segros import SeGroS
from segros_train.methods.sft import SFT
from segros_train.training.objective import Objective
from segros_train.types import GenerationBatch, Recipe

CAPTIONS = ("a red circle", "a blue square is big", "a green square")
METHODS = [SFT(), Reca(), SeGroS()]
RECIPE = Recipe(optimizer_steps=1, batch_size=len(CAPTIONS), precision="fp32")
Family = tuple[Backbone, GenerationBatch]


def family(name: str, folder: Path) -> Family:
    if name == "showo":
        return showo_tiny.tiny_showo(folder), showo_tiny.generation_batch(*CAPTIONS)
    return openuni_tiny.tiny_openuni(folder), openuni_tiny.generation_batch(*CAPTIONS)


@pytest.fixture(scope="module", params=["showo", "openuni"])
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    return family(request.param, tmp_path_factory.mktemp(request.param))


def gradients(backbone: Backbone, loss: Tensor) -> dict[str, Tensor]:
    backbone.zero_grad(set_to_none=True)
    loss.backward()
    return {name: value.grad for name, value in backbone.named_parameters() if value.grad is not None}


@contextmanager
def kept_bytes() -> Iterator[dict[int, int]]:
    """Count what the backward pass keeps besides weights, each storage once, by the address of its data."""
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        yield kept


@pytest.mark.parametrize("attention", ["paper", "native"])
@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_recomputation_changes_neither_the_loss_nor_a_gradient(built: Family, method: Method, attention: str) -> None:
    backbone, batch = built
    backbone.configure(Conditioning(attention=attention, text_dropout=0.3))
    objective = Objective(backbone, method, RECIPE, seed=5).train()
    found = {}
    for checkpointing in ("none", "blocks", "all"):
        backbone.set_checkpointing(checkpointing)
        loss = objective(batch, 3)
        found[checkpointing] = (loss.detach(), gradients(backbone, loss))
    backbone.set_checkpointing("none")
    loss, plain = found.pop("none")
    for recomputed_loss, recomputed in found.values():
        torch.testing.assert_close(recomputed_loss, loss, rtol=1e-6, atol=0)
        assert recomputed.keys() == plain.keys()
        for name, value in plain.items():
            torch.testing.assert_close(recomputed[name], value, rtol=1e-5, atol=1e-7, msg=name)


def test_recomputation_changes_no_gradient_of_an_answer(tmp_path: Path) -> None:
    showo = showo_tiny.tiny_showo(tmp_path).train()
    batch = showo_tiny.instruction_batch((("what is it ?", "a red circle"),), (("is it big ?", "yes"),))
    found = []
    for checkpointing in ("none", "blocks"):
        showo.set_checkpointing(checkpointing)
        found.append(gradients(showo, showo.i2t_loss(batch)))
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-5, atol=1e-7, msg=name)


def test_each_step_of_recomputation_keeps_less(built: Family) -> None:
    backbone, batch = built
    objective, sizes = Objective(backbone, SeGroS(), RECIPE, seed=5).train(), []
    for checkpointing in ("none", "blocks", "all"):
        backbone.set_checkpointing(checkpointing)
        with kept_bytes() as kept:
            objective(batch, 0)
        sizes.append(sum(kept.values()))
    backbone.set_checkpointing("none")
    assert sizes[1] < 0.6 * sizes[0]
    # Show-o keeps little besides its blocks.
    assert sizes[2] < sizes[1] if isinstance(backbone, OpenUni) else sizes[2] == sizes[1]


def test_queries_run_again_find_the_prefix_as_it_was(tmp_path: Path) -> None:
    model = openuni_tiny.tiny_openuni(tmp_path).model
    rows = torch.randn(2, 7, model.config.llm.hidden_size, generator=openuni_tiny.rng())
    prefix = model.read(rows, torch.ones(2, 7, dtype=torch.bool))
    first, second = model.query(prefix), model.query(prefix)
    assert torch.equal(first, second)
    assert prefix.cache.get_seq_length() == 7


@contextmanager
def streams(blocks: dict[str, list[nn.Module]]) -> Iterator[dict[str, set[torch.dtype]]]:
    """Note the type of what enters each block, and of what leaves the last."""
    found: dict[str, set[torch.dtype]] = {name: set() for name in blocks}
    handles = []
    for name, modules in blocks.items():

        def enter(module: nn.Module, inputs: tuple[Tensor, ...], found: set[torch.dtype] = found[name]) -> None:
            found.add(inputs[0].dtype)

        def leave(module: nn.Module, inputs: Any, states: Tensor, found: set[torch.dtype] = found[name]) -> None:
            found.add(states.dtype)

        handles += [module.register_forward_pre_hook(enter) for module in modules]
        handles.append(modules[-1].register_forward_hook(leave))
    yield found
    for handle in handles:
        handle.remove()


def transformers_of(backbone: Backbone) -> dict[str, list[nn.Module]]:
    if isinstance(backbone, Showo):
        return {"language": list(backbone.model.showo.model.layers)}
    assert isinstance(backbone, OpenUni)
    return {
        "language": list(backbone.model.language.layers),
        "connector": list(backbone.model.connector.layers),
        "generator": list(backbone.model.transformer.transformer_blocks),
    }


@pytest.mark.parametrize(("precision", "expected"), [("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_residual_streams_have_the_precision_of_matrix_products(
    built: Family, precision: Any, expected: torch.dtype
) -> None:
    backbone, batch = built
    objective = Objective(backbone, SeGroS(), replace(RECIPE, precision=precision), seed=5).train()
    with streams(transformers_of(backbone)) as found:
        assert torch.isfinite(objective(batch, 0))
    assert found == {name: {expected} for name in found}


@pytest.mark.parametrize("rows_at_once", [1, 3, 1000])
def test_the_loss_of_codes_in_chunks_is_the_plain_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows_at_once: int
) -> None:
    model = showo_tiny.tiny_showo(tmp_path).model
    vocabulary, draw = model.config.vocab_size, showo_tiny.rng()
    monkeypatch.setattr(showo_model, "LOGITS_BYTES", 4 * vocabulary * rows_at_once)
    states = torch.randn(2, 9, model.config.llm.hidden_size, generator=draw, requires_grad=True)
    labels = torch.randint(vocabulary, (2, 9), generator=draw).masked_fill(
        torch.rand(2, 9, generator=draw) < 0.3, IGNORED
    )
    bears = labels != IGNORED
    plain = functional.cross_entropy(model.logits(states)[bears], labels[bears])
    chunked = model.nll(states, labels)
    torch.testing.assert_close(chunked, plain, rtol=1e-6, atol=0)
    wanted = [states, *model.showo.lm_head.parameters()]
    for found, expected in zip(torch.autograd.grad(chunked, wanted), torch.autograd.grad(plain, wanted), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


def test_no_logits_are_kept_for_the_loss_of_codes(tmp_path: Path) -> None:
    model = showo_tiny.tiny_showo(tmp_path).model
    states = torch.randn(40, model.config.llm.hidden_size, requires_grad=True)
    with kept_bytes() as kept:
        model.nll(states, torch.zeros(40, dtype=torch.long))
    assert max(kept.values()) <= states.nbytes


def counted(monkeypatch: pytest.MonkeyPatch, owner: nn.Module, name: str) -> list[int]:
    """Return a list that grows by the number of images whenever a method of a model is given some."""
    counts: list[int] = []
    method: Callable[[Tensor], Tensor] = getattr(owner, name)

    def count(images: Tensor) -> Tensor:
        counts.append(len(images))
        return method(images)

    monkeypatch.setattr(owner, name, count)
    return counts


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
@pytest.mark.parametrize(
    ("name", "tower", "encoder"),
    [("showo", "clip_features", "encode_images"), ("openuni", "see", "encode_images")],
)
def test_a_step_reads_its_images_once_and_not_at_all_where_nobody_asks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, tower: str, encoder: str, method: Method
) -> None:
    backbone, batch = family(name, tmp_path)
    backbone.configure(Conditioning(text_dropout=0.0))
    model: nn.Module = backbone.model  # type: ignore[assignment]
    seen, encoded = counted(monkeypatch, model, tower), counted(monkeypatch, model, encoder)
    Objective(backbone, method, RECIPE, seed=5).train()(batch, 0)
    assert seen == ([] if isinstance(method, SFT) else [len(CAPTIONS)])
    assert encoded == [len(CAPTIONS)]


def test_seeing_an_image_encodes_no_latents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    openuni, batch = family("openuni", tmp_path)
    assert isinstance(openuni, OpenUni)
    encoded = counted(monkeypatch, openuni.model, "encode_images")
    assert embed(openuni, batch).image.shape[:2] == (len(CAPTIONS), openuni_tiny.NUM_VISUAL)
    assert encoded == []


def test_images_encoded_a_few_at_a_time_have_the_latents_of_all_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = openuni_tiny.tiny_openuni(tmp_path).model
    images = openuni_tiny.generation_batch(*[""] * 11).images
    sizes = counted(monkeypatch, model.vae.encoder, "forward")
    latents = model.encode_images(images)
    assert sizes == [8, 3]
    whole = model.vae.encode(images, return_dict=False)[0] * model.config.autoencoder.scale
    torch.testing.assert_close(latents, whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("config", [showo_tiny.CONFIG, openuni_tiny.CONFIG], ids=["showo", "openuni"])
def test_configurations_that_name_the_retired_field_are_read(config: ShowoConfig | OpenUniConfig) -> None:
    assert type(config).from_dict({**asdict(config), "gradient_checkpointing": True}) == config
    with pytest.raises(ValueError, match="no field gradient_checks"):
        type(config).from_dict({**asdict(config), "gradient_checks": True})
