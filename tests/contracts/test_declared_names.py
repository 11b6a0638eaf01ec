"""What is declared fits together: every name that a declaration uses is declared, and titles tell rows apart."""

from __future__ import annotations

import re
from collections import Counter

from segros_eval.pipeline.catalog import Catalog, load_catalog
from segros_eval.pipeline.paper import PaperTable
from segros_eval.reporting.published import load_reference
from segros_train.backbones.loading import family_of
from segros_train.method import TrainTask
from segros_train.types import BackboneCard, DataCard

NAME = re.compile(r"[a-z0-9]+([.-][a-z0-9]+)*")
SOURCE = re.compile(r"shapes|(hub|webdataset|folder|llava):\S+")


def test_names_can_be_typed_and_titles_can_be_read(catalog: Catalog) -> None:
    declared = (*catalog.backbones.values(), *catalog.methods.values(), *catalog.evaluators.values())
    assert [value.name for value in declared if not NAME.fullmatch(value.name)] == []
    assert [value.name for value in declared if not value.title.strip()] == []


def test_a_title_stands_for_one_row_or_column(catalog: Catalog) -> None:
    for kind in (catalog.backbones, catalog.methods, catalog.evaluators):
        titles = Counter(value.title for value in kind.values())
        assert [title for title, count in titles.items() if count > 1] == []


def test_all_takes_the_methods_of_the_papers_main_table() -> None:
    assert load_catalog().main_methods == ("none", "sft", "reca", "segros", "drop-loss")


def test_a_card_names_a_family_a_recipe_and_data_of_its_world(card: BackboneCard, catalog: Catalog) -> None:
    assert {"load", "locate"} <= set(vars(family_of(card)))
    assert card.recipe in catalog.recipes
    assert catalog.data[card.data].world == card.world


def test_a_card_says_how_to_draw_and_under_which_licence(card: BackboneCard) -> None:
    assert card.image_size_px > 0
    assert card.settings.num_steps > 0
    assert card.settings.batch_size is None or card.settings.batch_size > 0
    assert card.settings.cfg_scale >= 1
    assert card.licence


def test_the_weights_of_a_card_are_published_once_per_role(card: BackboneCard) -> None:
    roles = [file.role for file in card.weights]
    assert len(set(roles)) == len(roles)
    assert [file.repo for file in card.weights if not re.fullmatch(r"[\w.-]+/[\w.-]+", file.repo)] == []


def test_a_recipe_can_be_followed(recipe_name: str, catalog: Catalog) -> None:
    recipe = catalog.recipes[recipe_name]
    assert min(recipe.optimizer_steps, recipe.accumulation, recipe.batch_size) >= 1
    assert recipe.micro_steps == recipe.optimizer_steps * recipe.accumulation
    assert 0 <= recipe.warmup_steps < recipe.optimizer_steps
    assert recipe.schedule_steps is None or recipe.schedule_steps >= recipe.optimizer_steps
    assert recipe.learning_rate > 0
    assert recipe.clip_norm > 0
    assert 0 <= recipe.text_dropout < 1
    assert recipe.i2t_weight >= 0


def test_training_data_names_a_source_that_can_be_opened(data_card: DataCard) -> None:
    assert SOURCE.fullmatch(data_card.generation)
    assert data_card.instruction is None or SOURCE.fullmatch(data_card.instruction)
    assert (data_card.world == "shapes") == (data_card.generation == "shapes")


def test_only_the_method_none_trains_nothing(train_task: TrainTask) -> None:
    assert (train_task.method is None) == (train_task.name == "none")


def test_a_table_of_the_paper_is_made_of_what_is_declared(paper_table: PaperTable, catalog: Catalog) -> None:
    assert paper_table.train
    assert set(paper_table.train) <= set(catalog.methods)
    assert paper_table.backbones
    printed = {row.backbone for row in load_reference().table(paper_table.table).rows}
    assert not printed or set(paper_table.backbones) <= printed


def test_whatever_makes_numbers_declares_its_version(catalog: Catalog) -> None:
    values = [task.method for task in catalog.methods.values() if task.method is not None]
    values += [card.config for card in catalog.backbones.values()]
    values += [task.evaluator for task in catalog.evaluators.values()]
    assert all(isinstance(type(value).__dict__.get("version"), int) for value in values)
