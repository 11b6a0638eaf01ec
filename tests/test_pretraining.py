"""The commands of `pretraining/` run from random weights to a checkpoint that loads, and go on where they stopped."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pretraining import fitting
from pretraining.drawing import DrawingRecipe
from pretraining.scenes import NUM_CELLS, kinds, ordinary_scene
from segros_eval.pipeline.catalog import load_catalog
from segros_train.backbones.loading import load

ROOT = Path(__file__).parent.parent
COMMANDS = {"harmon": "harmon-tiny", "openuni": "openuni-tiny", "showo": "show-o-tiny"}


@pytest.mark.parametrize(("command", "name"), COMMANDS.items())
def test_a_command_leaves_weights_that_load_and_draw(command: str, name: str, tmp_path: Path) -> None:
    main = importlib.import_module(f"pretraining.{command}").main
    main(["--out", str(tmp_path), "--try"])
    kept = (tmp_path / name / "model.safetensors").read_bytes()
    backbone = load(load_catalog(ROOT / "tasks").backbones[name], source=tmp_path / name)
    settings = replace(backbone.card.settings, num_steps=2)
    (image,) = backbone.generate(["a photo of a red circle"], seeds=[0], settings=settings)
    assert image.size == (backbone.card.image_size_px,) * 2
    # A finished run has nothing left to do.
    main(["--out", str(tmp_path), "--try"])
    assert (tmp_path / name / "model.safetensors").read_bytes() == kept


def test_a_part_that_was_stopped_ends_with_the_weights_of_one_that_was_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitting, "SAVED_EVERY", 2)
    recipe = fitting.PartRecipe(steps=6, batch_size=3, learning_rate=0.1, warmup_steps=2)

    def trained(folder: Path, *, stopped_at: int | None = None) -> list[Tensor]:
        module = nn.Linear(2, 1)
        nn.init.zeros_(module.weight)
        nn.init.zeros_(module.bias)

        def loss(step: int, rng: torch.Generator) -> Tensor:
            if step == stopped_at:
                raise KeyboardInterrupt
            inputs = torch.randn(recipe.batch_size, 2, generator=rng)
            return (module(inputs) - inputs.sum(dim=1, keepdim=True)).square().mean()

        fitting.fit("part", module, loss, recipe, fitting.Run(folder))
        return [parameter.detach() for parameter in module.parameters()]

    folders = tmp_path / "whole", tmp_path / "stopped"
    for folder in folders:
        folder.mkdir()
    whole = trained(folders[0])
    with pytest.raises(KeyboardInterrupt):
        trained(folders[1], stopped_at=5)
    assert all(torch.equal(one, other) for one, other in zip(trained(folders[1]), whole, strict=True))
    assert bool((whole[0].abs() > 0.1).all())


def test_objects_and_a_few_background_cells_alone_bear_the_loss() -> None:
    shown = torch.stack([kinds(ordinary_scene(index)) for index in range(20)])
    recipe = DrawingRecipe(
        name="part", steps=1, batch_size=1, learning_rate=1.0, object_weight=((0.0, 3.0),), num_background_cells=4
    )
    weights = recipe.cell_weights(shown, 0, torch.Generator().manual_seed(0))
    assert weights.shape == (20, NUM_CELLS) and float(weights.sum()) == pytest.approx(1)
    held = shown > 0
    assert ((weights > 0) & ~held).sum(dim=1).tolist() == [4] * 20
    assert bool(torch.isclose(weights[held], 3 * weights[~held].max()).all())
