"""A plan is pure: names to stages, cells and keys, with every problem told at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cli_world
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segros_eval.pipeline.catalog import Catalog, load_catalog
from segros_eval.pipeline.keys import to_jsonable
from segros_eval.pipeline.overrides import apply_overrides, parse_override, parse_value
from segros_eval.pipeline.plan import Request, RunPlan, make_plan
from segros_train.errors import PrerequisiteError
from segros_train.methods.segros import SeGroS
from segros_train.types import Recipe


@pytest.fixture(scope="module")
def declared(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    return load_catalog(cli_world.declare(tmp_path_factory.mktemp("world")))


def plan_of(catalog: Catalog, **changes: Any) -> RunPlan:
    wanted = Request(methods=("sft",), backbones=("micro",), evaluators=("geneval",))
    return make_plan(catalog, dataclasses.replace(wanted, **changes))


def test_the_grid_is_backbones_by_methods_by_seeds_and_a_training_serves_all_its_evaluators(declared: Catalog) -> None:
    plan = plan_of(declared, methods=("none", "sft"), seeds=(0, 1))
    assert [(stage.task.name, stage.seed) for stage in plan.stages] == [
        ("none", 0),
        ("none", 1),
        ("sft", 0),
        ("sft", 1),
    ]
    assert [len(stage.cells) for stage in plan.stages] == [1, 1, 1, 1]
    assert len({stage.key for stage in plan.stages}) == 4


def test_all_means_the_main_methods_and_the_evaluators_of_the_backbones_world(declared: Catalog) -> None:
    plan = plan_of(declared, methods=("all",), evaluators=("all",))
    assert [stage.task.name for stage in plan.stages] == ["none", "sft", "segros"]
    assert {cell.task.name for stage in plan.stages for cell in stage.cells} == {"geneval"}


def test_the_stem_of_a_file_means_all_its_methods(declared: Catalog) -> None:
    assert [stage.task.name for stage in plan_of(declared, methods=("ablations",)).stages] == ["segros-noise-0"]


def test_a_name_given_twice_counts_once(declared: Catalog) -> None:
    assert len(plan_of(declared, methods=("sft", "all", "sft"), seeds=(0, 0)).stages) == 3


def test_the_baseline_trains_nothing(declared: Catalog) -> None:
    (stage,) = plan_of(declared, methods=("none",)).stages
    assert not stage.trains and stage.recipe is None and stage.data is None


def test_a_checkpoint_takes_the_place_of_training(declared: Catalog, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (stage,) = plan_of(declared, checkpoint=tmp_path).stages
    assert not stage.trains and stage.checkpoint == tmp_path


def test_every_problem_is_told_at_once_each_with_the_nearest_name(declared: Catalog) -> None:
    with pytest.raises(PrerequisiteError) as caught:
        plan_of(
            declared,
            methods=("segross", "sft"),
            backbones=("mirco",),
            evaluators=("genevel",),
            overrides=("hint_ratoi=0.5", "optimizer_steps=many", "nonsense"),
            data="shape",
            limit=0,
        )
    lines = str(caught.value).splitlines()
    wanted = [
        "'segros'",
        "'micro'",
        "'geneval'",
        "'hint_ratio'",
        "a whole number",
        "field=value",
        "'shapes'",
        "--limit",
    ]
    for word in wanted:
        assert any(word in line for line in lines), word
    assert len(lines) == len(wanted)


def test_a_recipe_sets_the_hints_of_segros_where_nothing_else_does(declared: Catalog) -> None:
    recipes = {"micro": dataclasses.replace(declared.recipes["micro"], default_hint_ratio=0.4)}
    catalog = dataclasses.replace(declared, recipes=recipes)
    (stage,) = plan_of(catalog, methods=("segros",)).stages
    assert isinstance(stage.task.method, SeGroS) and stage.task.method.hint_ratio == 0.4
    (stated,) = plan_of(catalog, methods=("segros",), overrides=("hint_ratio=0.5",)).stages
    assert isinstance(stated.task.method, SeGroS) and stated.task.method.hint_ratio == 0.5
    # An override that equals a default is still an override.
    (same,) = plan_of(catalog, methods=("segros",), overrides=("hint_ratio=0.3",)).stages
    assert isinstance(same.task.method, SeGroS) and same.task.method.hint_ratio == 0.3
    (plain_stage,) = plan_of(declared, methods=("segros",)).stages
    assert isinstance(plain_stage.task.method, SeGroS) and plain_stage.task.method.hint_ratio == 0.3


def test_an_evaluator_of_another_world_is_refused_when_named(declared: Catalog) -> None:
    with pytest.raises(PrerequisiteError, match="runs in 'photo', backbone 'micro' draws 'shapes'"):
        plan_of(declared, evaluators=("photos-only",))


def test_data_of_another_world_is_refused_with_the_data_that_fits(declared: Catalog) -> None:
    with pytest.raises(PrerequisiteError, match="Data of its world: shapes"):
        plan_of(declared, data="photos")


def test_an_unknown_method_casts_no_doubt_on_the_data(declared: Catalog) -> None:
    with pytest.raises(PrerequisiteError) as caught:
        plan_of(declared, methods=("segross",), data="shapes", overrides=("hint_ratio=0.5",))
    assert len(str(caught.value).splitlines()) == 1


def test_an_override_reaches_every_value_that_has_the_field(declared: Catalog) -> None:
    plan = plan_of(
        declared,
        methods=("sft", "segros", "segros-noise-0"),
        overrides=(
            "hint_ratio=0.5",
            "recipe.batch_size=7",
            "settings.batch_size=3",
            "geneval.images_per_prompt=1",
            "segros-noise-0.text_ratio=0.9",
        ),
    )
    by_name = {stage.task.name: stage for stage in plan.stages}
    methods = [by_name[name].task.method for name in ("segros", "segros-noise-0")]
    assert all(isinstance(method, SeGroS) and method.hint_ratio == 0.5 for method in methods)
    assert [method.text_ratio for method in methods if isinstance(method, SeGroS)] == [0.4, 0.9]
    for stage in plan.stages:
        assert stage.recipe is not None and stage.recipe.batch_size == 7
        assert stage.settings.batch_size == 3
        assert to_jsonable(stage.cells[0].task.evaluator)["images_per_prompt"] == 1


def test_a_field_of_several_owners_must_name_one(declared: Catalog) -> None:
    with pytest.raises(PrerequisiteError, match=r"ambiguous. Write recipe\.batch_size or settings\.batch_size"):
        plan_of(declared, overrides=("batch_size=2",))


def test_a_field_of_a_method_that_is_not_asked_for_is_unknown(declared: Catalog) -> None:
    with pytest.raises(PrerequisiteError, match="no field 'hint_ratio' in this run"):
        plan_of(declared, methods=("sft",), overrides=("hint_ratio=0.5",))


def test_training_data_cannot_be_changed_field_by_field(declared: Catalog) -> None:
    with pytest.raises(PrerequisiteError, match="no field 'generation'"):
        plan_of(declared, overrides=("generation=hub:else",))


@pytest.mark.parametrize(
    "change",
    [
        {"seeds": (1,)},
        {"overrides": ("optimizer_steps=3",)},
        {"methods": ("segros",)},
    ],
)
def test_what_changes_the_weights_changes_both_keys(declared: Catalog, change: dict[str, Any]) -> None:
    (before,), (after,) = plan_of(declared).stages, plan_of(declared, **change).stages
    assert before.key != after.key and before.cells[0].key != after.cells[0].key


@pytest.mark.parametrize(
    "change", [{"overrides": ("images_per_prompt=1",)}, {"overrides": ("cfg_scale=2",)}, {"limit": 3}]
)
def test_what_changes_only_the_evaluation_keeps_the_training(declared: Catalog, change: dict[str, Any]) -> None:
    (before,), (after,) = plan_of(declared).stages, plan_of(declared, **change).stages
    assert before.key == after.key and before.cells[0].key != after.cells[0].key


def test_the_batch_size_of_drawing_changes_no_key(declared: Catalog) -> None:
    (before,), (after,) = plan_of(declared).stages, plan_of(declared, overrides=("settings.batch_size=1",)).stages
    assert before.cells[0].key == after.cells[0].key


def test_planning_twice_gives_the_same_keys(declared: Catalog) -> None:
    assert plan_of(declared, methods=("all",)) == plan_of(declared, methods=("all",))


def test_the_run_folder_is_named_by_method_backbone_and_key(declared: Catalog) -> None:
    (stage,) = plan_of(declared).stages
    assert stage.folder == f"sft-micro-{stage.key[:8]}"


@given(st.integers(-10_000, 10_000))
def test_a_whole_number_is_read_back(number: int) -> None:
    assert parse_value(str(number), int) == number


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_number_is_read_back(number: float) -> None:
    assert parse_value(repr(number), float) == number


@pytest.mark.parametrize(
    ("text", "expected", "value"),
    [
        ("true", bool, True),
        ("Off", bool, False),
        ("none", int | None, None),
        ("4", int | None, 4),
        ("0.9, 0.95", tuple[float, float], (0.9, 0.95)),
        ('{"a": 1}', Mapping[str, Any], {"a": 1}),
    ],
)
def test_a_text_is_read_as_the_fields_type(text: str, expected: Any, value: Any) -> None:
    assert parse_value(text, expected) == value


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer_steps=2.5", "a whole number, found '2.5'"),
        ("learning_rate=nan", "a finite number"),
        ("precision=fp23", "Did you mean 'fp32'"),
        ("betas=0.9", "2 values separated by commas"),
        ("clip_norm=", "a number, found ''"),
    ],
)
def test_a_value_of_a_wrong_type_is_refused_with_what_was_expected(override: str, message: str) -> None:
    with pytest.raises(PrerequisiteError, match=message):
        apply_overrides({"recipe:x": Recipe(optimizer_steps=1, batch_size=1)}, [parse_override(override)])


@pytest.mark.parametrize("override", ["optimizer_steps=0", "recipe.batch_size=-1", "learning_rate=-1", "num_steps=0"])
def test_a_number_that_makes_no_sense_is_refused(declared: Catalog, override: str) -> None:
    with pytest.raises(PrerequisiteError, match=f"--set {override}: .* must be at least"):
        plan_of(declared, overrides=(override,))


def test_a_value_that_the_owner_refuses_is_reported_with_its_reason() -> None:
    with pytest.raises(PrerequisiteError, match="--set hint_ratio=7: "):
        apply_overrides({"method:segros": SeGroS()}, [parse_override("hint_ratio=7")])


def test_recomputation_is_no_part_of_a_key(declared: Catalog) -> None:
    keys = [
        plan_of(declared, methods=("segros",), overrides=overrides).stages[0].key
        for overrides in ((), ("checkpointing=all",), ("recipe.checkpointing=none",))
    ]
    assert len(set(keys)) == 1
