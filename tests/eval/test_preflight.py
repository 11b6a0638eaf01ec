"""Everything a plan lacks is told before it starts, all together, each with its remedy."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import cli_world
import pytest

from segros_eval.pipeline import preflight
from segros_eval.pipeline.catalog import Catalog, load_catalog
from segros_eval.pipeline.plan import Request, RunPlan, Stage, make_plan
from segros_eval.pipeline.preflight import check_device, check_plan, damaged, estimate, missing_data
from segros_train.errors import Problem
from segros_train.files import located
from segros_train.types import DataCard


@pytest.fixture(scope="module")
def declared(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    return load_catalog(cli_world.declare(tmp_path_factory.mktemp("world")))


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the test a `$SEGROS_HOME` with the micro model's files, empty as they are."""
    monkeypatch.setenv("SEGROS_HOME", str(tmp_path / "home"))
    weights = tmp_path / "home" / "weights" / "micro"
    weights.mkdir(parents=True)
    for name in ("model.pth", "tokenizer.json"):
        (weights / name).touch()
    return tmp_path / "home"


def plan_of(catalog: Catalog, **changes: Any) -> RunPlan:
    request = Request(methods=("sft",), backbones=("micro",), evaluators=("geneval",))
    return make_plan(catalog, dataclasses.replace(request, **changes))


def with_card(plan: RunPlan, **changes: Any) -> RunPlan:
    (stage,) = plan.stages
    return dataclasses.replace(
        plan, stages=(dataclasses.replace(stage, card=dataclasses.replace(stage.card, **changes)),)
    )


def told(problems: list[Problem]) -> str:
    return "\n".join(map(str, problems))


def test_a_plan_that_lacks_nothing_has_no_problem(declared: Catalog, tmp_path: Path) -> None:
    assert check_plan(plan_of(declared), out=tmp_path / "runs", device="auto") == []


def test_checking_leaves_no_trace(declared: Catalog, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    check_plan(plan_of(declared), out=tmp_path / "runs", device="cpu")
    assert sorted(tmp_path.rglob("*")) == before


def test_everything_missing_is_told_together_and_once(declared: Catalog, tmp_path: Path, home: Path) -> None:
    (home / "weights" / "micro" / "model.pth").unlink()
    (tmp_path / "file").touch()
    plan = plan_of(declared, methods=("sft", "segros"))
    photo = dataclasses.replace(declared.data["photos"])
    stages = tuple(dataclasses.replace(stage, data=photo) for stage in plan.stages)
    problems = check_plan(dataclasses.replace(plan, stages=stages), out=tmp_path / "file" / "runs", device="hal9000")
    text = told(problems)
    for word in ("--out", "--device", "model.pth", "hf download", "folder:photos", "no dialogues"):
        assert word in text
    assert len(problems) == 5 == len(set(problems))


def test_photographs_lack_a_detector_and_prompts(declared: Catalog, tmp_path: Path) -> None:
    problems = check_plan(with_card(plan_of(declared), world="photo"), out=tmp_path, device="cpu")
    assert "detector for photographs" in told(problems) and "segros data fetch geneval" in told(problems)


def test_cuda_that_is_not_there_is_told(declared: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    (problem,) = check_plan(plan_of(declared), out=tmp_path, device="cuda")
    assert "no CUDA device" in problem.what


@pytest.mark.parametrize("device", ["mps", "meta", "cuda0", "cuda:x", ""])
def test_a_device_that_is_neither_cpu_nor_cuda_is_refused(device: str) -> None:
    (problem,) = check_device(device)
    assert "--device takes" in problem.what


def test_a_device_with_a_number_too_large_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert list(check_device("cuda:1")) == []
    (problem,) = check_device("cuda:2")
    assert "the last one here is cuda:1" in problem.what


def test_a_disk_that_is_too_small_is_told_with_both_sizes(
    declared: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "num_weights", lambda card: 2**28)
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 2**30})())
    monkeypatch.setattr(preflight, "_memory_bytes", lambda: 2**40)
    (problem,) = check_plan(plan_of(declared), out=tmp_path, device="cpu")
    assert "writes about 8.0 GiB" in problem.what and "1.0 GiB free" in problem.what


def test_a_memory_that_is_too_small_is_told_for_training_alone(
    declared: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "num_weights", lambda card: 2**30)
    monkeypatch.setattr(preflight, "_memory_bytes", lambda: 2**32)
    (problem,) = check_plan(plan_of(declared), out=tmp_path, device="cpu")
    assert "at least 16.0 GiB of memory" in problem.what
    assert check_plan(plan_of(declared, methods=("none",)), out=tmp_path, device="cpu") == []


def test_the_cost_is_counted_from_recipe_and_samples(declared: Catalog) -> None:
    (stage,) = plan_of(declared, overrides=("accumulation=3", "i2t_batch_size=5")).stages
    cost = estimate(stage)
    assert (cost.num_updates, cost.num_micro_steps, cost.num_samples) == (2, 6, 6 * (2 + 5))
    assert cost.num_responses == (cli_world.NUM_IMAGES,)


def test_without_the_i2t_loss_dialogues_cost_nothing(declared: Catalog) -> None:
    (stage,) = plan_of(declared, overrides=("i2t_weight=0",)).stages
    assert estimate(stage).num_samples == 2 * 2


def test_what_cannot_be_counted_is_none_not_zero(declared: Catalog) -> None:
    (stage,) = with_card(plan_of(declared), world="photo").stages
    assert estimate(stage).num_responses == (None,) and estimate(stage).disk_bytes is None


def test_a_source_is_looked_for_as_named_then_below_the_home(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert located("folder:mine") == f"folder:{home / 'data' / 'mine'}"
    (tmp_path / "mine").mkdir()
    assert located("folder:mine") == "folder:mine"
    assert located("hub:owner/name") == "hub:owner/name" and located("shapes") == "shapes"


def test_each_missing_source_of_training_data_is_told() -> None:
    card = DataCard(name="d", world="photo", generation="hub:nobody/nothing", instruction="llava:nowhere")
    first, second = missing_data(card)
    assert "hf download --repo-type dataset nobody/nothing" in first.remedy and "nowhere" in second.what


def test_dialogues_that_a_recipe_does_not_use_are_not_missed() -> None:
    card = DataCard(name="d", world="shapes", generation="shapes")
    assert missing_data(card, dialogues=False) == []
    (problem,) = missing_data(card)
    assert "i2t_weight=0" in problem.remedy


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    import torch
    from safetensors.torch import save_file

    folder = tmp_path / "step-000002"
    folder.mkdir()
    (folder / "config.json").write_text('{"family": "harmon", "card": "micro"}')
    save_file({"weight": torch.zeros(100)}, folder / "model.safetensors")
    return folder


def test_a_whole_checkpoint_is_not_damaged(checkpoint: Path) -> None:
    assert damaged(checkpoint) == []


@pytest.mark.parametrize("num_bytes", [0, 4, 40, 300])
def test_a_truncated_checkpoint_is_damaged_wherever_it_is_cut(checkpoint: Path, num_bytes: int) -> None:
    weights = checkpoint / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:num_bytes])
    (problem,) = damaged(checkpoint)
    assert "Cannot read the weights" in problem.what and "model.safetensors" in problem.what and problem.remedy


def test_a_damaged_checkpoint_is_told_before_it_is_loaded(declared: Catalog, tmp_path: Path, checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").write_bytes(b"foreign" * 100)
    plan = plan_of(declared, checkpoint=checkpoint)
    assert "Cannot read the weights" in told(check_plan(plan, out=tmp_path / "runs", device="cpu"))


def test_a_stage_tells_its_settings_from_its_card(declared: Catalog) -> None:
    stage: Stage = plan_of(declared).stages[0]
    assert stage.settings == stage.card.settings
