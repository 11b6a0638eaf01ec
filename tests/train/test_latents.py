"""The latent cache: what frozen parts make of images and captions, encoded once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from harmon_tiny import tiny_harmon
from openuni_tiny import CARD, tiny_openuni
from torch import Tensor

from segros_eval.pipeline.keys import encoding_identity
from segros_train.backbone import Realisation
from segros_train.backbones.openuni.adapter import OpenUni
from segros_train.backbones.openuni.prompts import Prompt
from segros_train.data import latent_cache
from segros_train.data.latent_cache import LatentCache, cache_folder, encode, find_cache
from segros_train.data.shapes.sets import GenerationSet
from segros_train.errors import PrerequisiteError
from segros_train.method import Method
from segros_train.methods.reca import Reca
from segros_train.methods.segros import SeGroS
from segros_train.methods.sft import SFT
from segros_train.types import DataCard, GenerationBatch

SOURCE = GenerationSet(seed=3, size=5)
NO_DROPOUT = Realisation(text_dropout=0.0)
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


def step(openuni: OpenUni, batch: GenerationBatch, method: Method) -> tuple[Tensor, Tensor]:
    """Return the loss of a step, and the gradients of everything trained."""
    rng = torch.Generator().manual_seed(0)
    supervision = method.supervise(openuni.embed(batch), None, rng)
    openuni.zero_grad(set_to_none=True)
    loss = openuni.t2i_loss(batch, supervision, rng)
    loss.backward()
    trained = (parameter for parameter in openuni.parameters() if parameter.requires_grad)
    return loss.detach(), torch.cat([parameter.grad.flatten() for parameter in trained if parameter.grad is not None])


def read_prompts(openuni: OpenUni, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that grows by the number of prompts whenever the language model reads some."""
    counts: list[int] = []
    read = openuni.model.read
    monkeypatch.setattr(
        openuni.model, "read", lambda rows, valid, **mask: counts.append(len(rows)) or read(rows, valid, **mask)
    )
    return counts


@pytest.mark.parametrize("captions", [False, True], ids=["images", "images-and-captions"])
@pytest.mark.parametrize("dropout", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("method", [SFT(), Reca(), Reca(hint_ratio=0.3), SeGroS()])
def test_a_step_from_the_cache_has_the_loss_and_gradients_of_one_without(
    openuni: OpenUni, tmp_path: Path, method: Method, dropout: float, captions: bool
) -> None:
    openuni.realise(Realisation(attention="paper", text_dropout=dropout))
    openuni.kept_states = None
    batch = batch_of(openuni, 0, 1, 3, 4)
    loss, gradients = step(openuni, batch, method)
    openuni.kept_states = encode(openuni, SOURCE, tmp_path, captions=captions, batch_size=2)
    # The pixels are not looked at: what frozen parts make of them is known.
    cached, cached_gradients = step(openuni, replace(batch, images=torch.zeros_like(batch.images)), method)
    openuni.kept_states = None
    torch.testing.assert_close(cached, loss, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(cached_gradients, gradients, rtol=1e-4, atol=1e-5)


def test_what_was_encoded_with_frozen_parts_in_bf16_as_on_a_gpu_gives_the_same_loss(tmp_path: Path) -> None:
    openuni = tiny_openuni(tmp_path)
    openuni.model.lmm.bfloat16()
    openuni.model.vae.bfloat16()
    openuni.realise(NO_DROPOUT)
    batch = batch_of(openuni, 0, 1, 3)
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = step(openuni, batch, SFT())
    openuni.kept_states = kept = encode(openuni, SOURCE, tmp_path, captions=True, precision="bf16", batch_size=3)
    assert kept[batch.item_ids[0]]["prefix"].dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        cached, _ = step(openuni, replace(batch, images=torch.zeros_like(batch.images)), SFT())
    torch.testing.assert_close(cached, loss, rtol=1e-3, atol=0.0)


def test_captions_that_were_read_beforehand_are_not_read_again_and_the_empty_prompt_once(
    openuni: OpenUni, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    openuni.realise(Realisation(text_dropout=0.5))
    openuni.kept_states = encode(openuni, SOURCE, tmp_path, captions=True)
    monkeypatch.setattr(openuni, "_empty", None)
    counts = read_prompts(openuni, monkeypatch)
    for indices in ((0, 1, 2), (3, 4, 0)):
        step(openuni, batch_of(openuni, *indices), SFT())
    openuni.kept_states = None
    assert counts == [1]


def test_a_caption_that_has_changed_since_is_read_anew(
    openuni: OpenUni, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    openuni.realise(NO_DROPOUT)
    openuni.kept_states = None
    batch = batch_of(openuni, 0, 1)
    changed = replace(batch, captions=("a photo of a purple star", batch.captions[1]))
    loss, _ = step(openuni, changed, SFT())
    openuni.kept_states = encode(openuni, SOURCE, tmp_path, captions=True)
    counts = read_prompts(openuni, monkeypatch)
    cached, _ = step(openuni, replace(changed, images=batch.images.clone()), SFT())
    openuni.kept_states = None
    torch.testing.assert_close(cached, loss, rtol=1e-6, atol=1e-6)
    assert counts[-1] == 1


def test_states_of_a_caption_take_no_room_for_padding(openuni: OpenUni, tmp_path: Path) -> None:
    kept = encode(openuni, SOURCE, tmp_path, captions=True, batch_size=3)
    llm = openuni.model.config.llm
    for index in range(len(SOURCE)):
        prompt = openuni.tokenizer.caption(SOURCE[index].caption)
        item = kept[SOURCE[index].item_id]
        assert item["prompt"].tolist() == list(prompt.ids)
        width = llm.hidden_size // llm.num_heads
        assert item["prefix"].shape == (len(prompt.ids), llm.num_layers, 2, llm.num_kv_heads, width)
        alone = openuni.model.read(*_alone(openuni, prompt)).apart()[0]
        torch.testing.assert_close(item["prefix"], alone, rtol=1e-5, atol=1e-5)


def _alone(openuni: OpenUni, prompt: Prompt) -> tuple[Tensor, Tensor]:
    padded = openuni.tokenizer.pad([prompt], device="cpu")
    return openuni.model.embed_ids(padded.ids), padded.valid


def test_states_of_captions_asked_for_later_are_added(openuni: OpenUni, tmp_path: Path) -> None:
    images = encode(openuni, SOURCE, tmp_path)
    assert not images.holds_captions
    with pytest.raises(KeyError):
        images[SOURCE[0].item_id]["prefix"]
    assert encode(openuni, SOURCE, tmp_path, captions=True).holds_captions
    assert encode(openuni, SOURCE, tmp_path).holds_captions


def test_an_encoding_that_the_disk_will_not_hold_is_stopped_at_once(
    openuni: OpenUni, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latent_cache, "SHARD_ITEMS", 2)
    monkeypatch.setattr(latent_cache.shutil, "disk_usage", lambda _: SimpleNamespace(free=100))
    with pytest.raises(PrerequisiteError, match="3 more items take about .* GiB"):
        encode(openuni, SOURCE, tmp_path)


def test_items_that_were_not_encoded_are_computed(openuni: OpenUni, tmp_path: Path) -> None:
    openuni.kept_states = None
    batch = batch_of(openuni, 4, 0)
    loss, _ = step(openuni, batch, SeGroS())
    openuni.kept_states = encode(openuni, GenerationSet(seed=3, size=2), tmp_path)
    assert batch.item_ids[0] not in openuni.kept_states
    # Pixels of the one that was encoded are not looked at.
    pixels = batch.images * torch.tensor([1.0, 0.0]).view(2, 1, 1, 1)
    mixed, _ = step(openuni, replace(batch, images=pixels), SeGroS())
    openuni.kept_states = None
    torch.testing.assert_close(mixed, loss, rtol=1e-6, atol=1e-6)


def test_a_stopped_encoding_goes_on_with_what_is_missing(
    openuni: OpenUni, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latent_cache, "SHARD_ITEMS", 2)
    whole = encode(openuni, SOURCE, tmp_path / "whole")
    encode(openuni, GenerationSet(seed=3, size=3), tmp_path / "pieces")
    (tmp_path / "pieces" / "index.json").unlink()
    assert find_cache(tmp_path / "pieces") is None
    encoded: list[int] = []
    frozen = openuni.frozen_states
    monkeypatch.setattr(
        openuni, "frozen_states", lambda batch, **asked: encoded.append(len(batch.captions)) or frozen(batch, **asked)
    )
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
