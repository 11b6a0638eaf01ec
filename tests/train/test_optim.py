import pytest
import torch
from toy_training import RECIPE, ToyBackbone

from segros_train.backbone import ParameterGroups
from segros_train.training.optim import build_optimizer, keep_master_weights, learning_rate
from segros_train.types import Recipe


def rates(**fields: int) -> list[float]:
    recipe = Recipe(batch_size=1, learning_rate=2.0, **fields)
    return [learning_rate(recipe, update) for update in range(recipe.optimizer_steps)]


def test_the_rate_climbs_linearly_to_the_peak_and_falls_by_a_cosine_to_zero() -> None:
    assert rates(optimizer_steps=8, warmup_steps=4, schedule_steps=8) == pytest.approx(
        [0.5, 1.0, 1.5, 2.0, 2.0, 1 + 0.5**0.5, 1.0, 1 - 0.5**0.5]
    )


def test_the_cosine_ends_with_the_run_unless_the_recipe_says_otherwise() -> None:
    assert rates(optimizer_steps=6, warmup_steps=2) == rates(optimizer_steps=6, warmup_steps=2, schedule_steps=6)
    assert rates(optimizer_steps=6, schedule_steps=3)[3:] == pytest.approx([0, 0, 0], abs=1e-12)


@pytest.mark.parametrize(("update", "share"), [(500, 1.0), (3000, 0.9937), (5000, 0.9797)])
def test_harmons_rate_is_nearly_constant_over_its_run(update: int, share: float) -> None:
    recipe = Recipe(optimizer_steps=5000, batch_size=48, learning_rate=1.0, warmup_steps=500, schedule_steps=50_000)
    assert learning_rate(recipe, update) == pytest.approx(share, abs=5e-5)


def test_a_run_shorter_than_its_warm_up_only_climbs() -> None:
    assert rates(optimizer_steps=3, warmup_steps=10) == pytest.approx([0.2, 0.4, 0.6])


def test_weight_decay_shrinks_the_decayed_group_alone() -> None:
    backbone = ToyBackbone()
    before = {name: parameter.clone() for name, parameter in backbone.named_parameters()}
    optimizer = build_optimizer(backbone, RECIPE)
    for parameter in backbone.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    decay = 1 - RECIPE.learning_rate * RECIPE.weight_decay
    for name, parameter in backbone.named_parameters():
        shrinks = parameter.requires_grad and parameter.dim() > 1
        torch.testing.assert_close(parameter, before[name] * (decay if shrinks else 1))


def test_a_backbone_that_forgets_a_parameter_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = ToyBackbone()
    groups = backbone.parameter_groups()
    monkeypatch.setattr(backbone, "parameter_groups", lambda: ParameterGroups(groups.decayed, groups.not_decayed[1:]))
    with pytest.raises(ValueError, match=r"missing \['unused'\]"):
        build_optimizer(backbone, RECIPE)


def test_trainable_weights_are_held_in_float32_and_frozen_ones_as_they_came() -> None:
    backbone = ToyBackbone().bfloat16()
    keep_master_weights(backbone)
    precisions = {(parameter.requires_grad, parameter.dtype) for parameter in backbone.parameters()}
    assert precisions == {(True, torch.float32), (False, torch.bfloat16)}
