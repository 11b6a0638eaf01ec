"""OpenUni's weights on disk: published files in each of their forms, overlays, checkpoints of ours."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from openuni_tiny import CARD, CONFIG, PUBLISHED, changed, generation_batch, tiny_openuni
from safetensors.torch import load_file, save_file
from steps import t2i_loss
from torch import Tensor

from segros_train.backbone import Conditioning
from segros_train.backbones.openuni.adapter import OpenUni
from segros_train.backbones.openuni.loading import load
from segros_train.backbones.openuni.state_dict import is_frozen, our_names, upstream_names
from segros_train.backbones.openuni.weights import locate
from segros_train.errors import PrerequisiteError
from segros_train.types import Supervision

PHOTO_CARD = replace(CARD, weights=PUBLISHED)
REPOS = {file.role: file for file in PUBLISHED}


@pytest.fixture(scope="module")
def openuni(tmp_path_factory: pytest.TempPathFactory) -> OpenUni:
    return tiny_openuni(tmp_path_factory.mktemp("openuni"))


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SEGROS_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
    return tmp_path / "home" / "weights" / CARD.name


def part(state: Mapping[str, Tensor], *prefixes: str) -> dict[str, Tensor]:
    return {key: value.clone().contiguous() for key, value in state.items() if key.startswith(prefixes)}


def bare(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in part(state, prefix).items()}


def place(home: Path, role: str) -> Path:
    file = REPOS[role]
    names = {"lmm": "model.safetensors", "tokenizer": "tokenizer.json"}
    path = home / file.repo.rpartition("/")[2] / (file.filename or names[role])
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def publish(home: Path, openuni: OpenUni, *, lmm: Mapping[str, Tensor] | None = None) -> None:
    """Lay a model out as its authors do."""
    state = openuni.model.state_dict()
    save_file(lmm or bare(state, "lmm."), place(home, "lmm"))
    save_file(bare(state, "transformer."), place(home, "transformer"))
    save_file(bare(state, "vae."), place(home, "vae"))
    openuni.tokenizer.tokenizer.save(str(place(home, "tokenizer")))
    config = CONFIG.autoencoder
    values = {"scaling_factor": config.scale, "latent_channels": config.latent_channels}
    values["encoder_block_out_channels"] = list(config.channels)
    place(home, "vae-config").write_text(json.dumps(values))
    scheduler = {"flow_shift": CONFIG.flow_shift, "prediction_type": "flow_prediction", "use_flow_sigmas": True}
    place(home, "scheduler").write_text(json.dumps(scheduler))
    own = part(state, "meta_queries", "connector.", "projector.")
    torch.save({"state_dict": own, "meta": {"iter": 5}}, place(home, "model"))


def same(one: OpenUni, other: OpenUni) -> bool:
    first, second = one.model.state_dict(), other.model.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_published_files_make_the_model_they_were_made_of(openuni: OpenUni, home: Path) -> None:
    publish(home, openuni)
    assert locate(PHOTO_CARD).missing == ()
    again = load(PHOTO_CARD)
    assert same(openuni, again)
    assert not any(p.requires_grad for part in (again.model.lmm, again.model.vae) for p in part.parameters())


def older_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Name a language model as transformers did before version 5."""
    renamed = {}
    for key, value in state.items():
        key = key.replace("model.language_model.", "language_model.model.")
        key = key.removeprefix("model.") if key.startswith(("model.vision", "model.multi")) else key
        renamed["language_model." + key if key.startswith("lm_head") else key] = value
    return renamed


def test_the_language_model_may_have_the_names_of_any_of_its_files(openuni: OpenUni, home: Path) -> None:
    state = openuni.model.state_dict()
    remote = bare({key: value for key, value in upstream_names(state).items() if not key.startswith("vae")}, "lmm.")
    for names in (older_names(bare(state, "lmm.")), remote):
        publish(home, openuni, lmm=names)
        assert same(openuni, load(PHOTO_CARD))


def test_a_file_published_in_parts_is_read_by_its_index(openuni: OpenUni, home: Path) -> None:
    publish(home, openuni)
    whole = place(home, "transformer")
    state = load_file(whole)
    whole.unlink()
    keys = sorted(state)
    halves = {"a.safetensors": keys[: len(keys) // 2], "b.safetensors": keys[len(keys) // 2 :]}
    for name, chosen in halves.items():
        save_file({key: state[key] for key in chosen}, whole.parent / name)
    index = {"weight_map": {key: name for name, chosen in halves.items() for key in chosen}}
    whole.with_name(f"{whole.name}.index.json").write_text(json.dumps(index))
    assert same(openuni, load(PHOTO_CARD))


def test_a_fine_tuned_file_lies_over_the_base(
    openuni: OpenUni, home: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    publish(home, openuni)
    tuned = {key: value + 1 for key, value in part(openuni.model.state_dict(), "transformer.proj_out").items()}
    folder = tmp_path / "tuned"
    folder.mkdir()
    torch.save(tuned, folder / "reca.pth")
    with caplog.at_level(logging.INFO):
        again = load(PHOTO_CARD, source=folder).model.state_dict()
    before = openuni.model.state_dict()
    differing = {key for key in before if not torch.equal(before[key], again[key])}
    assert differing == set(tuned)
    assert "reca.pth supplies 2 tensors: transformer" in caplog.text


def test_a_fine_tuned_file_that_holds_everything_needs_no_base(openuni: OpenUni, home: Path, tmp_path: Path) -> None:
    publish(home, openuni)
    place(home, "model").unlink()
    folder = tmp_path / "tuned"
    folder.mkdir()
    torch.save(upstream_names(openuni.model.state_dict()), folder / "whole.pth")
    assert same(openuni, load(PHOTO_CARD, source=folder))


def test_queries_that_no_file_holds_are_asked_for(openuni: OpenUni, home: Path, tmp_path: Path) -> None:
    publish(home, openuni)
    state = part(openuni.model.state_dict(), "connector.", "projector.")
    torch.save(state, place(home, "model"))
    with pytest.raises(PrerequisiteError, match="hold no meta_queries"):
        load(PHOTO_CARD)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state | {"other.weight": torch.zeros(1)}, "1 unexpected: other.weight"),
        (lambda state: {k: v for k, v in state.items() if k != "projector.bias"}, "1 missing: projector.bias"),
        (lambda state: state | {"projector.bias": torch.zeros(3)}, "1 of another shape: projector.bias"),
    ],
)
def test_keys_and_shapes_are_held_to_strictly(openuni: OpenUni, home: Path, change, message: str) -> None:
    publish(home, openuni)
    own = part(openuni.model.state_dict(), "meta_queries", "connector.", "projector.")
    torch.save(change(own), place(home, "model"))
    with pytest.raises(PrerequisiteError, match=message):
        load(PHOTO_CARD)


@pytest.mark.parametrize(("role", "name"), [("vae-config", "scaling_factor"), ("scheduler", "flow_shift")])
def test_settings_other_than_the_cards_are_refused(openuni: OpenUni, home: Path, role: str, name: str) -> None:
    publish(home, openuni)
    path = place(home, role)
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: 9.0}))
    with pytest.raises(PrerequisiteError, match=f"{name} 9.0"):
        load(PHOTO_CARD)


def test_a_damaged_file_is_named(openuni: OpenUni, home: Path) -> None:
    publish(home, openuni)
    place(home, "vae").write_bytes(b"torn")
    with pytest.raises(PrerequisiteError, match="dc-ae"):
        load(PHOTO_CARD)


def test_what_is_missing_is_named_with_the_command_that_fetches_it(openuni: OpenUni, home: Path) -> None:
    publish(home, openuni)
    place(home, "scheduler").unlink()
    (line,) = locate(PHOTO_CARD).missing
    assert "hf download someone/Sana scheduler/scheduler_config.json --local-dir" in line.remedy
    with pytest.raises(PrerequisiteError, match="scheduler_config"):
        load(PHOTO_CARD)


def test_a_checkpoint_holds_what_is_trained_and_lies_over_the_published_files(
    openuni: OpenUni, home: Path, tmp_path: Path
) -> None:
    publish(home, openuni)
    trained = load(PHOTO_CARD)
    trained.configure(Conditioning(attention="paper", text_dropout=0.25))
    with torch.no_grad():
        trained.model.meta_queries += 1
    trained.save_pretrained(tmp_path / "kept")
    assert not any(is_frozen(key) for key in load_file(tmp_path / "kept" / "model.safetensors"))
    again = load(PHOTO_CARD, source=tmp_path / "kept")
    assert same(trained, again)
    assert again.conditioning == trained.conditioning
    place(home, "lmm").unlink()
    with pytest.raises(PrerequisiteError, match="InternVL"):
        load(PHOTO_CARD, source=tmp_path / "kept")


def test_a_checkpoint_of_a_model_without_published_files_holds_everything(openuni: OpenUni, tmp_path: Path) -> None:
    openuni.save_pretrained(tmp_path / "kept")
    assert same(openuni, load(CARD, source=tmp_path / "kept"))


def test_a_checkpoint_of_another_configuration_is_refused(openuni: OpenUni, tmp_path: Path) -> None:
    openuni.save_pretrained(tmp_path / "kept")
    other = replace(CARD, config=changed(flow_shift=1.0))
    with pytest.raises(PrerequisiteError, match="flow_shift is 3.0 there and 1.0 here"):
        load(other, source=tmp_path / "kept")
    load(replace(CARD, config=changed(corruption="native")), source=tmp_path / "kept")
    with pytest.raises(PrerequisiteError, match="openuni-test, asked for another"):
        load(replace(CARD, name="another"), source=tmp_path / "kept")


def test_missing_weights_of_a_tiny_backbone_ask_for_a_new_installation() -> None:
    assert all("Reinstall segros" in str(line) for line in locate(CARD).missing)
    assert len(locate(CARD).missing) == 3


def test_what_is_exported_is_an_overlay_that_loads_again(openuni: OpenUni, home: Path, tmp_path: Path) -> None:
    publish(home, openuni)
    state = {key: value.clone() for key, value in openuni.upstream_state().items()}
    assert {key.partition(".")[0] for key in state} == {"meta_queries", "connector", "projector", "transformer"}
    folder = tmp_path / "exported"
    folder.mkdir()
    save_file(state, folder / "openuni.safetensors")
    assert same(openuni, load(PHOTO_CARD, source=folder))


def test_names_go_to_upstreams_and_back(openuni: OpenUni) -> None:
    state = openuni.model.state_dict()
    again = our_names(upstream_names(state))
    assert again.keys() == state.keys()
    assert all(torch.equal(again[key], value) for key, value in state.items())


def test_a_loaded_model_takes_the_same_loss(openuni: OpenUni, tmp_path: Path) -> None:
    openuni.save_pretrained(tmp_path / "kept")
    batch, supervision = generation_batch("a photo of a red circle"), Supervision(caption=True)
    with torch.no_grad():
        losses = [t2i_loss(m, batch, supervision) for m in (openuni, load(CARD, source=tmp_path / "kept"))]
    assert torch.equal(*losses)
