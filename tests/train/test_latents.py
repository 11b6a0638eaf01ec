"""The latent cache: what frozen parts make of training images, encoded once, read where it is asked for."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from harmon_tiny import tiny_harmon
from openuni_tiny import CARD, tiny_openuni
from PIL import Image, ImageOps
from showo_tiny import CODES_ONLY, tiny_showo
from steps import draws_of
from torch import Tensor, nn

from segros_eval.pipeline.keys import latents_folder
from segros_train.backbone import Backbone, Conditioning
from segros_train.backbones.openuni.adapter import OpenUni
from segros_train.data import latent_cache
from segros_train.data.batches import MicroBatch, Share, generation_batches
from segros_train.data.latent_cache import LatentCache, WithLatents, encode, find_cache
from segros_train.data.samples import GenerationSample, GenerationSource
from segros_train.data.shapes.sets import GenerationSet
from segros_train.errors import PrerequisiteError
from segros_train.method import Method
from segros_train.methods.reca import Reca
from segros_train.methods.segros import SeGroS
from segros_train.methods.sft import SFT
from segros_train.types import Crop, DataCard, GenerationBatch

DATA = DataCard(name="shapes", world="shapes", generation="shapes", instruction="shapes")
FAMILIES: dict[str, Callable[[Path], Backbone]] = {
    "harmon": tiny_harmon,
    "showo": tiny_showo,
    "showo-codes": lambda folder: tiny_showo(folder, CODES_ONLY),
    "openuni": tiny_openuni,
}


class Wide:
    """Scenes beside a bar, so that a square of them depends on where it is cut; some negated."""

    def __init__(self, *, size: int = 5, negated: tuple[int, ...] = ()) -> None:
        self.scenes, self.negated = GenerationSet(seed=3, size=size), negated

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> GenerationSample:
        sample = self.scenes[index]
        image = ImageOps.expand(sample.image, border=(20 + index, 0, 60, 0), fill=(200, 30, 90))
        return replace(sample, image=ImageOps.invert(image) if index in self.negated else image)


SOURCE = Wide()


@pytest.fixture(scope="module")
def openuni(tmp_path_factory: pytest.TempPathFactory) -> OpenUni:
    return tiny_openuni(tmp_path_factory.mktemp("openuni"))


@pytest.fixture(scope="module", params=FAMILIES)
def backbone(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return FAMILIES[request.param](tmp_path_factory.mktemp(request.param))


def batches(backbone: Backbone, source: GenerationSource, crop: Crop, *, size: int = 5) -> list[GenerationBatch]:
    """Return the first two micro-batches of training: with five items, two epochs."""
    made = generation_batches(
        source,
        transform=backbone.image_transform("generation"),
        batch_size=size,
        seed=0,
        share=Share(),
        crop=crop,
    )
    return [batch_of(made[micro_step]) for micro_step in range(2)]


def batch_of(drawn: MicroBatch[GenerationBatch]) -> GenerationBatch:
    assert drawn.batch is not None
    return drawn.batch


def step(backbone: Backbone, batch: GenerationBatch, method: Method) -> tuple[Tensor, Tensor]:
    """Return the loss of a step, and the gradients of everything trained."""
    draws = draws_of(len(batch.captions))
    encoded = backbone.encode(batch)
    supervision = method.supervise(backbone.embed(encoded), backbone.masking_ratio(draws), draws)
    backbone.zero_grad(set_to_none=True)
    loss = backbone.t2i_loss(encoded, supervision, draws)
    loss.backward()
    trained = (parameter for parameter in backbone.parameters() if parameter.requires_grad)
    return loss.detach(), torch.cat([parameter.grad.flatten() for parameter in trained if parameter.grad is not None])


def blank(batch: GenerationBatch) -> GenerationBatch:
    return replace(batch, images=torch.zeros_like(batch.images))


@pytest.mark.parametrize("method", [SFT(), Reca(), SeGroS()], ids=lambda method: type(method).__name__)
def test_a_step_from_the_cache_has_the_loss_and_gradients_of_one_without(
    backbone: Backbone, tmp_path: Path, method: Method
) -> None:
    backbone.configure(Conditioning(attention="paper", text_dropout=0.3))
    cached = WithLatents(SOURCE, encode(backbone, SOURCE, tmp_path, batch_size=2))
    for plain, kept in zip(batches(backbone, SOURCE, "fixed"), batches(backbone, cached, "fixed"), strict=True):
        loss, gradients = step(backbone, plain, method)
        # The pixels are not looked at: what frozen parts make of them is known.
        found, found_gradients = step(backbone, blank(kept), method)
        torch.testing.assert_close(found, loss, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(found_gradients, gradients, rtol=1e-3, atol=1e-4)


def test_only_a_fixed_crop_is_the_same_in_every_epoch(openuni: OpenUni) -> None:
    for crop, is_same in (("fixed", True), ("random", False)):
        first, second = (
            dict(zip(batch.item_ids, batch.images, strict=True)) for batch in batches(openuni, SOURCE, crop)
        )
        assert first.keys() == second.keys()
        assert all(torch.equal(first[item_id], second[item_id]) == is_same for item_id in first)


def test_training_reads_no_cache_that_it_was_not_given(
    openuni: OpenUni, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEGROS_HOME", str(tmp_path))
    encode(openuni, SOURCE, latents_folder(CARD, DATA))
    assert all(batch.latents == () for batch in batches(openuni, SOURCE, "fixed"))


def test_a_replaced_image_is_encoded_anew(openuni: OpenUni, tmp_path: Path) -> None:
    cache = encode(openuni, SOURCE, tmp_path)
    replaced = Wide(negated=(1, 4))
    kept, plain = (batches(openuni, source, "fixed")[0] for source in (WithLatents(replaced, cache), replaced))
    changed = {replaced[index].item_id for index in (1, 4)}
    known = [latents is not None for latents in kept.latents]
    assert known == [item_id not in changed for item_id in kept.item_ids]
    loss, _ = step(openuni, plain, SeGroS())
    found, _ = step(openuni, kept, SeGroS())
    torch.testing.assert_close(found, loss, rtol=1e-5, atol=1e-6)


def test_items_that_were_not_encoded_are_computed_and_the_others_are_not_looked_at(
    openuni: OpenUni, tmp_path: Path
) -> None:
    cached = WithLatents(SOURCE, encode(openuni, Wide(size=2), tmp_path))
    kept, plain = (batches(openuni, source, "fixed")[0] for source in (cached, SOURCE))
    new = torch.tensor([latents is None for latents in kept.latents])
    assert int(new.sum()) == 3
    loss, _ = step(openuni, plain, SeGroS())
    found, _ = step(openuni, replace(kept, images=kept.images * new.view(-1, 1, 1, 1)), SeGroS())
    torch.testing.assert_close(found, loss, rtol=1e-5, atol=1e-6)


def test_a_step_reads_of_the_cache_what_it_asks_for_alone(openuni: OpenUni, tmp_path: Path) -> None:
    read: list[str] = []

    class Watched(dict[str, Tensor]):
        def __getitem__(self, name: str) -> Tensor:
            read.append(name)
            return super().__getitem__(name)

    (batch, _) = batches(openuni, WithLatents(SOURCE, encode(openuni, SOURCE, tmp_path)), "fixed")
    openuni.configure(Conditioning(text_dropout=0.0))
    watched = replace(batch, latents=tuple(Watched(latents or {}) for latents in batch.latents))
    encoded, draws = openuni.encode(watched), draws_of(5)
    openuni.t2i_loss(encoded, SFT().supervise(openuni.embed(openuni.encode(batch)), None, draws), draws)
    assert read == ["latents"] * 5


def test_what_was_encoded_with_frozen_parts_in_bf16_as_on_a_gpu_gives_the_same_loss(tmp_path: Path) -> None:
    openuni = tiny_openuni(tmp_path)
    openuni.model.lmm.bfloat16()
    openuni.model.vae.bfloat16()
    openuni.configure(Conditioning(text_dropout=0.0))
    cached = WithLatents(SOURCE, encode(openuni, SOURCE, tmp_path, precision="bf16", batch_size=3))
    kept, plain = (batches(openuni, source, "fixed")[0] for source in (cached, SOURCE))
    assert kept.latents[0] is not None and kept.latents[0]["seen"].dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = step(openuni, plain, SFT())
        found, _ = step(openuni, blank(kept), SFT())
    torch.testing.assert_close(found, loss, rtol=1e-3, atol=0.0)


def test_latents_travel_between_processes_as_the_place_where_they_lie(openuni: OpenUni, tmp_path: Path) -> None:
    latents = encode(openuni, SOURCE, tmp_path).latents(SOURCE[2].item_id, SOURCE[2].image)
    assert latents is not None and set(latents) == {"latents", "seen"}
    sent = pickle.dumps(latents)
    assert len(sent) < 1000
    assert torch.equal(pickle.loads(sent)["latents"], latents["latents"])


def test_an_encoding_that_the_disk_will_not_hold_is_stopped_at_once(
    openuni: OpenUni, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latent_cache, "SHARD_ITEMS", 2)
    monkeypatch.setattr(latent_cache.shutil, "disk_usage", lambda _: SimpleNamespace(free=100))
    with pytest.raises(PrerequisiteError, match="3 more items take about .* GiB"):
        encode(openuni, SOURCE, tmp_path)


def test_a_stopped_encoding_goes_on_with_what_is_missing(
    openuni: OpenUni, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latent_cache, "SHARD_ITEMS", 2)
    whole = encode(openuni, SOURCE, tmp_path / "whole")
    encode(openuni, Wide(size=3), tmp_path / "pieces")
    (tmp_path / "pieces" / "index.json").unlink()
    assert find_cache(tmp_path / "pieces") is None
    encoded: list[int] = []
    see = openuni.model.see
    monkeypatch.setattr(openuni.model, "see", lambda images: encoded.append(len(images)) or see(images))
    pieces = encode(openuni, SOURCE, tmp_path / "pieces")
    assert sum(encoded) == 3
    for index in range(len(SOURCE)):
        found, expected = (cache.latents(SOURCE[index].item_id, SOURCE[index].image) for cache in (pieces, whole))
        assert found is not None and expected is not None
        assert all(torch.equal(found[name], expected[name]) for name in ("latents", "seen"))


def test_a_whole_cache_is_not_encoded_again(openuni: OpenUni, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encode(openuni, SOURCE, tmp_path)
    monkeypatch.setattr(openuni, "encode", None)
    told: list[int] = []
    assert len(encode(openuni, SOURCE, tmp_path, advance=told.append)) == 5
    assert told == [5]


def test_a_damaged_index_is_named(tmp_path: Path) -> None:
    (tmp_path / "index.json").write_text("{", encoding="utf-8")
    with pytest.raises(PrerequisiteError, match="Encode them again"):
        LatentCache(tmp_path)


def test_other_weights_or_data_have_another_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SEGROS_HOME", str(tmp_path / "home"))
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    other_data = replace(DATA, generation=f"folder:{pictures}")
    folders = []
    for colour in ("red", "blue"):
        Image.new("RGB", (8, 8), colour).save(pictures / "0.png")
        folders.append(latents_folder(CARD, other_data))
    folders += [latents_folder(CARD, DATA), latents_folder(replace(CARD, image_size_px=192), DATA)]
    assert len(set(folders)) == 4
    assert all(folder.is_relative_to(tmp_path / "home" / "latents") for folder in folders)


def test_a_backbone_without_frozen_parts_says_so(tmp_path: Path, openuni: OpenUni) -> None:
    class Unfrozen(nn.Linear):
        card = CARD
        image_transform = openuni.image_transform

        def encode(self, batch: GenerationBatch) -> SimpleNamespace:
            return SimpleNamespace(frozen={})

    with pytest.raises(PrerequisiteError, match="train it without"):
        encode(Unfrozen(1, 1), SOURCE, tmp_path / "cache")  # type: ignore[arg-type]
