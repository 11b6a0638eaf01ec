"""The latent cache: what frozen parts make of images, encoded once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from harmon_tiny import tiny_harmon
from openuni_tiny import CARD, tiny_openuni

from segros_eval.fingerprint import encoding_identity
from segros_train.backbones.openuni.adapter import OpenUni
from segros_train.data import latents
from segros_train.data.latents import LatentCache, cache_folder, encode, find_cache
from segros_train.data.shapes import GenerationSet
from segros_train.errors import PrerequisiteError
from segros_train.methods.segros import SeGroS
from segros_train.types import DataCard, GenerationBatch

SOURCE = GenerationSet(seed=3, size=5)
DATA = DataCard(name="shapes", world="shapes", generation="shapes", instruction="shapes")


@pytest.fixture(scope="module")
def openuni(tmp_path_factory: pytest.TempPathFactory) -> OpenUni:
    return tiny_openuni(tmp_path_factory.mktemp("openuni"))


def batch_of(openuni: OpenUni, *indices: int) -> GenerationBatch:
    prepare, samples = openuni.image_transform("generation"), [SOURCE[index] for index in indices]
    return GenerationBatch(
        torch.stack([prepare(sample.image, torch.Generator()) for sample in samples]),
        tuple(sample.caption for sample in samples),
        tuple(sample.item_id for sample in samples),
    )


def step(openuni: OpenUni, batch: GenerationBatch) -> torch.Tensor:
    rng = torch.Generator().manual_seed(0)
    supervision = SeGroS().supervise(openuni.embed(batch), None, rng)
    openuni.zero_grad(set_to_none=True)
    loss = openuni.t2i_loss(batch, supervision, rng)
    loss.backward()
    return loss.detach()


def test_a_step_from_the_cache_has_the_loss_and_gradients_of_one_without(openuni: OpenUni, tmp_path: Path) -> None:
    openuni.kept_states = None
    batch = batch_of(openuni, 0, 3)
    loss = step(openuni, batch)
    gradient = openuni.model.meta_queries.grad.clone()
    openuni.kept_states = encode(openuni, SOURCE, tmp_path, batch_size=2)
    # The pixels are not looked at: what frozen parts make of them is known.
    cached = step(openuni, replace(batch, images=torch.zeros_like(batch.images)))
    openuni.kept_states = None
    torch.testing.assert_close(cached, loss, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(openuni.model.meta_queries.grad, gradient, rtol=1e-4, atol=1e-5)


def test_items_that_were_not_encoded_are_computed(openuni: OpenUni, tmp_path: Path) -> None:
    openuni.kept_states = None
    batch = batch_of(openuni, 0, 4)
    loss = step(openuni, batch)
    openuni.kept_states = encode(openuni, GenerationSet(seed=3, size=2), tmp_path)
    assert batch.item_ids[1] not in openuni.kept_states
    mixed = step(openuni, batch)
    openuni.kept_states = None
    torch.testing.assert_close(mixed, loss)


def test_a_stopped_encoding_goes_on_with_what_is_missing(
    openuni: OpenUni, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latents, "SHARD_ITEMS", 2)
    whole = encode(openuni, SOURCE, tmp_path / "whole")
    encode(openuni, GenerationSet(seed=3, size=3), tmp_path / "pieces")
    (tmp_path / "pieces" / "index.json").unlink()
    assert find_cache(tmp_path / "pieces") is None
    encoded: list[int] = []
    frozen = openuni.frozen_states
    monkeypatch.setattr(openuni, "frozen_states", lambda batch: encoded.append(len(batch.captions)) or frozen(batch))
    pieces = encode(openuni, SOURCE, tmp_path / "pieces")
    assert sum(encoded) == 3
    assert list(pieces) == list(whole)
    assert all(torch.equal(pieces[key][name], whole[key][name]) for key in whole for name in whole[key])


def test_a_whole_cache_is_not_encoded_again(openuni: OpenUni, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encode(openuni, SOURCE, tmp_path)
    monkeypatch.setattr(openuni, "frozen_states", None)
    told: list[int] = []
    assert len(encode(openuni, SOURCE, tmp_path, advance=told.append)) == 5
    assert told == [5]


def test_a_damaged_index_is_named(tmp_path: Path) -> None:
    (tmp_path / "index.json").write_text("{", encoding="utf-8")
    with pytest.raises(PrerequisiteError, match="Encode them again"):
        LatentCache(tmp_path)


def test_other_weights_or_data_have_another_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SEGROS_HOME", str(tmp_path))
    other_data = replace(DATA, generation="folder:pictures")
    other_model = replace(CARD, image_size_px=192)
    folders = {
        cache_folder(CARD.name, encoding_identity(card, data))
        for card, data in ((CARD, DATA), (CARD, other_data), (other_model, DATA))
    }
    assert len(folders) == 3
    assert all(folder.is_relative_to(tmp_path) for folder in folders)


def test_a_backbone_that_keeps_nothing_says_so(tmp_path: Path) -> None:
    with pytest.raises(PrerequisiteError, match="train it without"):
        encode(tiny_harmon(tmp_path), SOURCE, tmp_path / "cache")
