from __future__ import annotations

import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from harmon_tiny import CARD, CONFIG, changed, tiny_harmon
from safetensors.torch import save_file
from torch import Tensor

from segros_train.backbone import Conditioning
from segros_train.backbones.harmon.adapter import Harmon
from segros_train.backbones.harmon.config import HarmonConfig
from segros_train.backbones.harmon.loading import locate
from segros_train.backbones.loading import load
from segros_train.errors import PrerequisiteError
from segros_train.files import file_sha256

HEAD = "llm.lm_head.weight"
State = dict[str, Any]


@pytest.fixture(scope="module")
def harmon(tmp_path_factory: pytest.TempPathFactory) -> Harmon:
    return tiny_harmon(tmp_path_factory.mktemp("harmon"))


@pytest.fixture(autouse=True)
def nothing_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide whatever the machine keeps of published files."""
    monkeypatch.setenv("SEGROS_HOME", str(tmp_path / "home"))


@pytest.fixture
def published(harmon: Harmon, tmp_path: Path) -> Callable[..., Path]:
    """Write the published files, with their contents changed as a test asks."""

    def write(
        model: Callable[[State], Any] = dict, vae: Callable[[State], Any] = lambda state: {"model": state}
    ) -> Path:
        folder = tmp_path / "published"
        folder.mkdir(exist_ok=True)
        state = {key: value.clone() for key, value in harmon.upstream_state().items()}
        own = {key: value for key, value in state.items() if not key.startswith("vae.")}
        other = {key.removeprefix("vae."): value for key, value in state.items() if key.startswith("vae.")}
        torch.save(model(own), folder / "harmon.pth")
        torch.save(vae(other), folder / "kl16.ckpt")
        harmon.tokenizer.tokenizer.save(str(folder / "tokenizer.json"))
        return folder

    return write


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for key, value in one.items():
        assert value.dtype == torch.float32 and torch.equal(value, other[key]), key


def test_a_checkpoint_gives_back_weights_tokenizer_and_conditioning(harmon: Harmon, tmp_path: Path) -> None:
    conditioning = Conditioning(attention="paper", hint_slot="prefix", text_dropout=0.2)
    harmon.configure(conditioning)
    harmon.save_pretrained(tmp_path / "checkpoint")
    again = load(CARD, source=tmp_path / "checkpoint")
    assert_same(again.upstream_state(), harmon.upstream_state())
    assert again.conditioning == conditioning
    assert again.tokenizer.ids("a red circle") == harmon.tokenizer.ids("a red circle")
    assert again.model.llm.lm_head.weight is again.model.llm.model.embed_tokens.weight
    frozen = {name for name, part in harmon.named_parameters() if not part.requires_grad}
    assert {name for name, part in again.named_parameters() if not part.requires_grad} == frozen
    assert not again.model.training


def test_a_checkpoint_in_bf16_takes_half_the_room_and_loads_to_float32(harmon: Harmon, tmp_path: Path) -> None:
    harmon.save_pretrained(tmp_path / "full")
    harmon.save_pretrained(tmp_path / "half", dtype=torch.bfloat16)
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("full", "half")]
    assert sizes[1] < 0.7 * sizes[0]
    rounded = {key: value.bfloat16().float() for key, value in harmon.upstream_state().items()}
    assert_same(load(CARD, source=tmp_path / "half").upstream_state(), rounded)


@pytest.mark.parametrize(
    "form",
    [
        pytest.param(dict, id="flat"),
        pytest.param(lambda state: {"state_dict": state}, id="wrapped"),
        pytest.param(lambda state: {key: value for key, value in state.items() if key != HEAD}, id="without-tied-head"),
    ],
)
def test_every_published_form_loads_to_the_same_weights(
    harmon: Harmon, published: Callable[..., Path], form: Callable[[State], Any]
) -> None:
    assert_same(load(CARD, source=published(form)).upstream_state(), harmon.upstream_state())


def test_an_exported_state_with_its_autoencoder_loads_as_published(
    harmon: Harmon, published: Callable[..., Path]
) -> None:
    folder = published()
    torch.save(harmon.upstream_state(), folder / "harmon.pth")
    torch.save({"model": {}}, folder / "kl16.ckpt")
    assert_same(load(CARD, source=folder).upstream_state(), harmon.upstream_state())


def test_published_files_in_bf16_load_to_float32(harmon: Harmon, published: Callable[..., Path]) -> None:
    folder = published(lambda state: {key: value.bfloat16() for key, value in state.items()})
    state = load(CARD, source=folder).upstream_state()
    assert_same(
        state,
        {
            key: value if key.startswith("vae.") else value.bfloat16().float()
            for key, value in harmon.upstream_state().items()
        },
    )


def without(key: str) -> Callable[[State], State]:
    return lambda state: {name: value for name, value in state.items() if name != key}


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (without("proj_in.0.bias"), "1 missing: proj_in.0.bias"),
        (lambda state: state | {"mar.extra": torch.zeros(1)}, "1 unexpected: mar.extra"),
        (lambda state: state | {"proj_in.0.bias": torch.zeros(3)}, r"proj_in.0.bias \(3,\) instead of \(32,\)"),
        (lambda state: state | {HEAD: torch.zeros_like(state[HEAD])}, "ties"),
        (lambda state: {"epoch": 3}, "no named tensors"),
        (lambda state: [1, 2], "no named tensors"),
    ],
)
def test_a_published_file_that_does_not_fit_is_refused_with_its_keys(
    published: Callable[..., Path], model: Callable[[State], Any], words: str
) -> None:
    with pytest.raises(PrerequisiteError, match=words):
        load(CARD, source=published(model))


def test_a_published_autoencoder_that_lacks_a_key_is_refused(published: Callable[..., Path]) -> None:
    with pytest.raises(PrerequisiteError, match=r"1 missing: vae\.quant_conv\.bias"):
        load(CARD, source=published(vae=without("quant_conv.bias")))


class Attack:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("attacked"),))


def test_a_pickle_never_runs_code(
    published: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = published()
    (folder / "harmon.pth").write_bytes(pickle.dumps({"proj_in.0.bias": Attack()}, protocol=2))
    with pytest.raises(PrerequisiteError, match="harmon.pth"):
        load(CARD, source=folder)
    assert not Path("attacked").exists()


def test_a_published_file_is_held_to_the_digest_of_its_card_and_a_users_own_is_not(
    published: Callable[..., Path], tmp_path: Path
) -> None:
    folder = published()
    kept = tmp_path / "home" / "weights" / CARD.name
    shutil.copytree(folder, kept)
    for digest, is_right in ((file_sha256(folder / "harmon.pth"), True), ("0" * 64, False)):
        own, *others = CARD.weights
        card = replace(CARD, weights=(replace(own, sha256=digest), *others))
        load(card, source=folder)
        if is_right:
            load(card)
        else:
            with pytest.raises(PrerequisiteError, match=f"{kept / 'harmon.pth'} is not the model .* declared is 000"):
                load(card)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_truncated_checkpoint_is_named(harmon: Harmon, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "checkpoint"
    harmon.save_pretrained(folder)
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(PrerequisiteError, match=str(tmp_path)):
        load(CARD, source=folder)


def test_a_truncated_published_file_is_named(published: Callable[..., Path]) -> None:
    folder = published()
    content = (folder / "harmon.pth").read_bytes()
    (folder / "harmon.pth").write_bytes(content[: len(content) // 2])
    with pytest.raises(PrerequisiteError, match=r"harmon\.pth"):
        load(CARD, source=folder)


def test_a_checkpoint_of_another_card_or_configuration_is_refused(harmon: Harmon, tmp_path: Path) -> None:
    harmon.save_pretrained(tmp_path)
    with pytest.raises(PrerequisiteError, match="harmon-test, asked for harmon-other"):
        load(replace(CARD, name="harmon-other"), source=tmp_path)
    with pytest.raises(PrerequisiteError, match=r"mar\.encoder_heads is 3 there and 6 here"):
        load(replace(CARD, config=changed(encoder_heads=6)), source=tmp_path)


def test_choices_of_a_run_are_the_cards_and_not_the_checkpoints(harmon: Harmon, tmp_path: Path) -> None:
    harmon.save_pretrained(tmp_path)
    (tmp_path / "requests.txt").write_text("Say it.\nShow it.\n")
    config = replace(CONFIG, instructions_file=str(tmp_path / "requests.txt"))
    again = load(replace(CARD, config=config), source=tmp_path)
    assert again.instructions == ("Say it.", "Show it.")
    with pytest.raises(PrerequisiteError, match="nowhere"):
        load(replace(CARD, config=replace(config, instructions_file="nowhere")), source=tmp_path)


def test_a_foreign_checkpoint_is_refused(harmon: Harmon, tmp_path: Path) -> None:
    harmon.save_pretrained(tmp_path)
    save_file({"layer.weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(PrerequisiteError, match=r"unexpected: layer\.weight"):
        load(CARD, source=tmp_path)


def test_a_checkpoint_without_its_weights_is_incomplete(harmon: Harmon, tmp_path: Path) -> None:
    harmon.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    assert any("model.safetensors" in str(line) for line in locate(CARD, tmp_path).missing)
    with pytest.raises(PrerequisiteError, match="incomplete"):
        load(CARD, source=tmp_path)


def test_missing_published_files_are_named_with_the_command_that_fetches_them(tmp_path: Path) -> None:
    lines = locate(CARD).missing
    place = tmp_path / "home" / "weights" / "harmon-test"
    assert [line.remedy for line in lines] == [
        f"hf download someone/harmon harmon.pth --local-dir {place}",
        f"hf download someone/harmon kl16.ckpt --local-dir {place}",
        f"hf download someone/language tokenizer.json --local-dir {place}",
    ]
    with pytest.raises(PrerequisiteError, match=r"hf download someone/harmon harmon\.pth"):
        load(CARD)


def test_published_files_are_found_where_they_are_kept(
    harmon: Harmon, published: Callable[..., Path], tmp_path: Path
) -> None:
    place = tmp_path / "home" / "weights" / "harmon-test"
    place.parent.mkdir(parents=True)
    published().rename(place)
    assert locate(CARD).missing == ()
    assert_same(load(CARD).upstream_state(), harmon.upstream_state())


def test_a_given_folder_without_the_model_is_not_replaced_by_other_weights(
    published: Callable[..., Path], tmp_path: Path
) -> None:
    place = tmp_path / "home" / "weights" / "harmon-test"
    place.parent.mkdir(parents=True)
    published().rename(place)
    (tmp_path / "empty").mkdir()
    (line,) = locate(CARD, tmp_path / "empty").missing
    assert "harmon.pth" in line.what
    assert locate(CARD, tmp_path / "nowhere").missing


def test_a_configuration_survives_being_written(tmp_path: Path) -> None:
    from dataclasses import asdict

    plain = asdict(CONFIG)
    plain["vae"]["ch_mult"] = list(plain["vae"]["ch_mult"])
    assert HarmonConfig.from_dict(plain) == CONFIG
    assert HarmonConfig.from_dict(plain | {"gradient_checkpointing": True}) == CONFIG, "a former field"
    with pytest.raises(ValueError, match="speed"):
        HarmonConfig.from_dict(plain | {"speed": 1})
    with pytest.raises(ValueError, match="llm"):
        HarmonConfig.from_dict({"mar": plain["mar"]})


def test_looking_for_weights_imports_no_torch() -> None:
    code = "import sys, segros_train.backbones.harmon.config, segros_train.backbones.harmon.loading as h; h.locate"
    code += "; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
