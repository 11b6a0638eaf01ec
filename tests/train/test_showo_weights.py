"""Show-o's weights on disk: published files in every form, checkpoints, and what is said when something is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from showo_tiny import CARD, CONFIG, tiny_showo
from torch import Tensor

from segros_train.backbone import Conditioning
from segros_train.backbones.loading import load
from segros_train.backbones.showo.adapter import Showo
from segros_train.backbones.showo.loading import locate
from segros_train.errors import PrerequisiteError

State = dict[str, Tensor]
VQ = ("encoder.", "decoder.", "quantize.")


@pytest.fixture(scope="module")
def showo(tmp_path_factory: pytest.TempPathFactory) -> Showo:
    return tiny_showo(tmp_path_factory.mktemp("showo"))


@pytest.fixture(autouse=True)
def nothing_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide whatever the machine keeps of published files."""
    monkeypatch.setenv("SEGROS_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)


def write(path: Path, state: State) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {key: value.clone().contiguous() for key, value in state.items()}
    save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)


@pytest.fixture
def published(showo: Showo, tmp_path: Path) -> Callable[..., Path]:
    """Write the published files, the model's under a name and with its contents changed as a test asks."""

    def publish(name: str = "pytorch_model.bin", change: Callable[[State], State] = dict) -> Path:
        folder = tmp_path / "published"
        state = showo.upstream_state()
        clip = {key: value for key, value in state.items() if key.startswith("vision_model.")}
        unused = {"text_model.embeddings.weight": torch.zeros(2), "logit_scale": torch.zeros(())}
        position_ids = {"vision_model.embeddings.position_ids": torch.arange(4)}
        vq = {key: value for key, value in state.items() if key.startswith(VQ)}
        own = {key: value for key, value in state.items() if key not in clip and key not in vq}
        write(folder / name, change(own))
        write(folder / "vq" / "pytorch_model.bin", vq)
        write(folder / "clip" / "model.safetensors", clip | unused | position_ids)
        (folder / "tokenizer").mkdir(exist_ok=True)
        showo.tokenizer.tokenizer.save(str(folder / "tokenizer" / "tokenizer.json"))
        (folder / "config.json").write_text(json.dumps({"w_clip_vit": True, "llm_model_path": "microsoft/phi-1_5"}))
        return folder

    return publish


def assert_same(one: State, other: State) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[key]) for key, value in one.items())


@pytest.mark.parametrize(
    "name", ["pytorch_model.safetensors", "pytorch_model.bin", "model.safetensors", "diffusion_pytorch_model.bin"]
)
def test_published_files_load_to_the_same_weights_under_every_name(
    showo: Showo, published: Callable[..., Path], name: str
) -> None:
    assert_same(load(CARD, source=published(name)).upstream_state(), showo.upstream_state())


def test_sharded_files_load_to_the_same_weights(showo: Showo, published: Callable[..., Path]) -> None:
    folder = published()
    own = torch.load(folder / "pytorch_model.bin", weights_only=True)
    (folder / "pytorch_model.bin").unlink()
    names = sorted(own)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for shard, keys in shards.items():
        write(folder / shard, {key: own[key] for key in keys})
    index = {"weight_map": {key: shard for shard, keys in shards.items() for key in keys}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert_same(load(CARD, source=folder).upstream_state(), showo.upstream_state())


def test_an_exported_state_of_all_parts_loads_as_published(
    showo: Showo, published: Callable[..., Path], tmp_path: Path
) -> None:
    folder = published()
    write(folder / "pytorch_model.bin", showo.upstream_state())
    assert_same(load(CARD, source=folder).upstream_state(), showo.upstream_state())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: {k: v for k, v in state.items() if "lm_head.bias" not in k}, "1 missing: showo.lm_head.bias"),
        (lambda state: {**state, "showo.extra": torch.zeros(1)}, "1 unexpected: showo.extra"),
        (lambda state: {**state, "showo.lm_head.bias": torch.zeros(3)}, "1 of another shape: showo.lm_head.bias"),
    ],
)
def test_a_key_that_is_missing_left_over_or_misshapen_is_named(
    published: Callable[..., Path], change: Callable[[State], State], words: str
) -> None:
    with pytest.raises(PrerequisiteError, match=words):
        load(CARD, source=published(change=change))


def test_another_codebook_is_refused(published: Callable[..., Path]) -> None:
    folder = published()
    path = folder / "vq" / "pytorch_model.bin"
    state = torch.load(path, weights_only=True)
    torch.save(state | {"quantize.embedding": state["quantize.embedding"].flip(1)}, path)
    with pytest.raises(PrerequisiteError, match="another codebook"):
        load(CARD, source=folder)


def test_a_damaged_file_is_named(published: Callable[..., Path]) -> None:
    folder = published()
    (folder / "vq" / "pytorch_model.bin").write_bytes(b"torn")
    with pytest.raises(PrerequisiteError, match="Cannot read the weights"):
        load(CARD, source=folder)


def test_every_missing_file_is_named_with_its_command(tmp_path: Path) -> None:
    missing = locate(CARD).missing
    assert [file.repo in str(line) for file, line in zip(CARD.weights, missing, strict=True)] == [True] * 4
    assert all("hf download" in str(line) for line in missing)
    (only,) = locate(CARD, tmp_path / "nowhere").missing
    assert "is no folder" in only.what


def test_a_checkpoint_gives_back_weights_and_conditioning(showo: Showo, tmp_path: Path) -> None:
    chosen = Conditioning(attention="paper", hint_slot="user", text_dropout=0.2)
    showo.configure(chosen)
    showo.save_pretrained(tmp_path / "kept")
    again = load(CARD, source=tmp_path / "kept")
    assert_same(again.upstream_state(), showo.upstream_state())
    assert again.conditioning == chosen
    frozen = {name for name, parameter in showo.named_parameters() if not parameter.requires_grad}
    assert {name for name, parameter in again.named_parameters() if not parameter.requires_grad} == frozen
    assert not any(part.training for part in again.modules() if part is not again)


def test_a_checkpoint_in_bf16_loads_to_float32(showo: Showo, tmp_path: Path) -> None:
    showo.save_pretrained(tmp_path / "half", dtype=torch.bfloat16)
    rounded: dict[str, Any] = {
        key: value.bfloat16().float() if value.is_floating_point() else value
        for key, value in showo.upstream_state().items()
    }
    assert_same(load(CARD, source=tmp_path / "half").upstream_state(), rounded)


def test_a_checkpoint_of_another_card_or_configuration_is_refused(showo: Showo, tmp_path: Path) -> None:
    showo.save_pretrained(tmp_path / "kept")
    with pytest.raises(PrerequisiteError, match="is a checkpoint of show-o-test"):
        load(replace(CARD, name="other"), source=tmp_path / "kept")
    wider = replace(CARD, config=replace(CONFIG, llm=replace(CONFIG.llm, hidden_size=64)))
    with pytest.raises(PrerequisiteError, match=r"llm.hidden_size is 32 there and 64 here"):
        load(wider, source=tmp_path / "kept")
    with pytest.raises(PrerequisiteError, match="clip is"):
        load(replace(CARD, config=replace(CONFIG, clip=None)), source=tmp_path / "kept")


def test_a_tokenizer_of_another_model_is_refused(showo: Showo, tmp_path: Path) -> None:
    showo.save_pretrained(tmp_path / "kept")
    path = tmp_path / "kept" / "tokenizer.json"
    path.write_text(path.read_text().replace("<|endoftext|>", "<|end|>"))
    with pytest.raises(PrerequisiteError, match="<|endoftext|> is None"):
        load(CARD, source=tmp_path / "kept")
    path.write_text("{}")
    with pytest.raises(PrerequisiteError, match="describes no model"):
        load(CARD, source=tmp_path / "kept")
