"""From names to a frozen plan: what to train, what to draw, what to score, and the keys that name each result.

A `Stage` is one model: a method on a backbone with one seed. Its evaluations are `Cell`s, which share the stage's
checkpoint. A key is a content hash of everything that determines the numbers: declared values and versions, seeds, and
the content of weights, data and benchmark files. Source code is no part of it; see `segros_eval.pipeline.reuse`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from segros_eval.benchmarks.base import EvalTask
from segros_eval.benchmarks.lmms_eval import PREFIX, harness_task
from segros_eval.pipeline.catalog import Catalog
from segros_eval.pipeline.keys import (
    data_identity,
    folder_content,
    latents_folder,
    to_jsonable,
    version_of,
    weights_digest,
)
from segros_eval.pipeline.official_files import benchmark_folder
from segros_eval.pipeline.overrides import apply_overrides, parse_override
from segros_train.data.shapes.world import WORLD_VERSION
from segros_train.errors import PrerequisiteError, Problem, unknown_name
from segros_train.files import content_key
from segros_train.method import Method, TrainTask
from segros_train.methods.segros import HINT_RATIO, SeGroS
from segros_train.types import BackboneCard, DataCard, GenerationSettings, Recipe

__all__ = ["Cell", "Request", "RunPlan", "Stage", "make_plan"]


@dataclasses.dataclass(frozen=True)
class Request:
    """What was asked for on the command line.

    Attributes:
        methods: Names of train tasks; `all` for the main ones, a file's stem for all of a file of `tasks/train`.
        backbones: Names of cards.
        evaluators: Names of evaluations; `all` for every one that can run in the backbone's world.
        seeds: Each seed is a training and a draw of its own.
        data: Name of the training data; None for the backbone's default.
        overrides: `field=value` each.
        limit: Largest number of prompts or questions per evaluation; None for all.
        checkpoint: Trained weights to evaluate in place of training.
        num_ranks: Processes that train together; each sees its own micro-batches.
        reuse: `"code"`: finished work is taken up where key and code are the same; `"key"`: where the key is.
        latents: Whether training reads what `segros data encode` made of its images.
    """

    methods: tuple[str, ...]
    backbones: tuple[str, ...]
    evaluators: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0,)
    data: str | None = None
    overrides: tuple[str, ...] = ()
    limit: int | None = None
    checkpoint: Path | None = None
    num_ranks: int = 1
    reuse: Literal["code", "key"] = "code"
    latents: bool = False


@dataclasses.dataclass(frozen=True)
class Cell:
    """One evaluation of one model.

    Attributes:
        task: The evaluation, overrides applied.
        limit: Largest number of prompts or questions; None for all.
        key: Content hash of everything that determines the numbers.
        frozen: Whether no method changes the answers: the numbers stand under the method that trains nothing.
    """

    task: EvalTask
    limit: int | None
    key: str
    frozen: bool = False


@dataclasses.dataclass(frozen=True)
class Stage:
    """One model and its evaluations.

    Attributes:
        task: The way to fine-tune.
        card: The backbone, with the sampling settings of this run.
        recipe: How long and how fast to train; None where nothing is trained.
        data: What to train on; None where nothing is trained.
        seed: Seed of training and of every draw.
        key: Content hash of everything that determines the weights.
        cells: Evaluations, in the order asked for.
        checkpoint: Trained weights given by the user; None to train.
        latents: Name of the latent cache that training reads; None where images are encoded as they are seen.
    """

    task: TrainTask
    card: BackboneCard
    recipe: Recipe | None
    data: DataCard | None
    seed: int
    key: str
    cells: tuple[Cell, ...] = ()
    checkpoint: Path | None = None
    latents: str | None = None

    @property
    def folder(self) -> str:
        """Name of the run folder."""
        return f"{self.task.name}-{self.card.name}-{self.key[:8]}"

    @property
    def settings(self) -> GenerationSettings:
        """Sampling settings of this run."""
        return self.card.settings

    @property
    def trains(self) -> bool:
        """Whether weights are trained in this run."""
        return self.recipe is not None and self.checkpoint is None


@dataclasses.dataclass(frozen=True)
class RunPlan:
    """Everything a command will do.

    Attributes:
        stages: Models in the order they are made.
        reuse: As in `Request`.
    """

    stages: tuple[Stage, ...]
    reuse: Literal["code", "key"] = "code"


def make_plan(catalog: Catalog, request: Request) -> RunPlan:
    """Turn names into a plan.

    Args:
        catalog: What is declared.
        request: What was asked for.

    Raises:
        PrerequisiteError: Lists every unknown name, bad override and incompatible pair at once.
    """
    problems: list[Problem] = []
    chosen = _choose(problems, catalog, request)
    if request.limit is not None and request.limit < 1:
        problems.append(Problem(f"--limit takes a number of prompts of at least 1, found {request.limit}."))
    if request.checkpoint is None:
        _check_training(problems, catalog, request, chosen)
    # With a name unknown, fields are looked up in everything declared, so that no right field is called wrong.
    scope = _everything(catalog) if problems else chosen
    owners = _owners(catalog, request, scope)
    overrides = _collected(problems, [functools.partial(parse_override, text) for text in request.overrides])
    changed = _collected(problems, [functools.partial(apply_overrides, owners, overrides)])
    if problems:
        raise PrerequisiteError.of(problems)
    stages = [
        _stage(request, changed[0], task, card, seed, chosen.evaluators[card.name])
        for card in chosen.backbones
        for task in chosen.methods
        for seed in dict.fromkeys(request.seeds)
    ]
    return RunPlan(stages=tuple(_frozen_once(stages)), reuse=request.reuse)


def _frozen_once(stages: Iterable[Stage]) -> Iterator[Stage]:
    """Leave the answers of a frozen language model to the first stage of its backbone."""
    seen: set[str] = set()
    for stage in stages:
        kept = tuple(cell for cell in stage.cells if not (cell.frozen and stage.card.name in seen))
        if any(cell.frozen for cell in stage.cells):
            seen.add(stage.card.name)
        yield dataclasses.replace(stage, cells=kept)


@dataclasses.dataclass(frozen=True)
class _Chosen:
    methods: tuple[TrainTask, ...]
    backbones: tuple[BackboneCard, ...]
    evaluators: Mapping[str, tuple[EvalTask, ...]]


def _choose(problems: list[Problem], catalog: Catalog, request: Request) -> _Chosen:
    groups = {stem: names for stem, names in catalog.groups.items() if set(names) <= set(catalog.methods)}
    groups["all"] = catalog.main_methods
    methods = _resolve(problems, "method", request.methods, catalog.methods, groups)
    backbones = _resolve(problems, "backbone", request.backbones, catalog.backbones, {"all": tuple(catalog.backbones)})
    known = {**catalog.evaluators, **_harness_tasks(problems, request)}
    evaluators = _resolve(problems, "evaluator", request.evaluators, known, {"all": tuple(catalog.evaluators)})
    return _Chosen(methods, backbones, _fitting(problems, request, evaluators, backbones))


def _harness_tasks(problems: list[Problem], request: Request) -> dict[str, EvalTask]:
    """Return the tasks of other harnesses that were asked for, which no declaration names."""
    asked = [name for name in request.evaluators if name.startswith(PREFIX)]
    tasks = _collected(problems, [functools.partial(harness_task, name) for name in asked])
    return {task.name: task for task in tasks}


def _everything(catalog: Catalog) -> _Chosen:
    cards, evaluators = tuple(catalog.backbones.values()), tuple(catalog.evaluators.values())
    return _Chosen(tuple(catalog.methods.values()), cards, {card.name: evaluators for card in cards})


def _collected(problems: list[Problem], steps: Iterable[Callable[[], Any]]) -> list[Any]:
    """Run every step; keep the results, and the problems of those that fail."""
    results = []
    for step in steps:
        try:
            results.append(step())
        except PrerequisiteError as error:
            problems += error.problems
    return results


def _resolve(
    problems: list[Problem],
    kind: str,
    names: Sequence[str],
    declared: Mapping[str, Any],
    groups: Mapping[str, tuple[str, ...]],
) -> tuple[Any, ...]:
    """Return the declared values of `names` in order, without repeats, groups spelled out."""
    resolved: dict[str, Any] = {}
    for name in names:
        members = (name,) if name in declared else groups.get(name)
        if members is None:
            problems += unknown_name(kind, name, (*declared, "all")).problems
            continue
        resolved.update((member, declared[member]) for member in members)
    return tuple(resolved.values())


def _fitting(
    problems: list[Problem], request: Request, evaluators: Sequence[EvalTask], backbones: Sequence[BackboneCard]
) -> dict[str, tuple[EvalTask, ...]]:
    """Return each backbone's evaluations; one asked for by name must fit, `all` means all that fit."""
    named = set(request.evaluators)
    fitting: dict[str, tuple[EvalTask, ...]] = {}
    for card in backbones:
        for task in evaluators:
            if card.world not in task.worlds and task.name in named:
                what = (
                    f"Evaluator {task.name!r} runs in {' or '.join(map(repr, task.worlds))}, "
                    f"backbone {card.name!r} draws {card.world!r}"
                )
                problems.append(Problem(what, "Ask for another evaluator, or for a backbone of its world."))
        fitting[card.name] = tuple(task for task in evaluators if card.world in task.worlds)
    return fitting


def _owners(catalog: Catalog, request: Request, chosen: _Chosen) -> dict[str, Any]:
    """Return every value that `--set` can change, and the training data, by owner name."""
    owners: dict[str, Any] = {}
    for task in chosen.methods:
        if task.method is not None:
            owners[f"method:{task.name}"] = task.method
    for card in chosen.backbones:
        owners[f"settings:{card.name}"] = card.settings
        for evaluator in chosen.evaluators[card.name]:
            owners[f"evaluator:{evaluator.name}"] = evaluator.evaluator
    if request.checkpoint is None:
        owners.update(_training_owners(catalog, request, chosen))
    return owners


def _training_owners(catalog: Catalog, request: Request, chosen: _Chosen) -> dict[str, Any]:
    """Return the recipe of every training and the data of every backbone, as far as they are declared."""
    found: dict[str, Any] = {}
    for card in chosen.backbones:
        for task in chosen.methods:
            if task.method is not None:
                found[_recipe_owner(task, card)] = catalog.recipes.get(_recipe_name(task, card))
        found[f"data:{card.name}"] = catalog.data.get(request.data or card.data)
    return {owner: value for owner, value in found.items() if value is not None}


def _recipe_owner(task: TrainTask, card: BackboneCard) -> str:
    return f"recipe:{_recipe_name(task, card)}"


def _recipe_name(task: TrainTask, card: BackboneCard) -> str:
    """Return a task's own recipe or the backbone's."""
    return task.recipe or card.recipe


def _check_training(problems: list[Problem], catalog: Catalog, request: Request, chosen: _Chosen) -> None:
    """Add what the training of the chosen models lacks: a recipe, or data of their world."""
    if request.data is not None and request.data not in catalog.data:
        problems += unknown_name("data", request.data, catalog.data).problems
        return
    for card in chosen.backbones:
        for task in chosen.methods:
            name = _recipe_name(task, card)
            if task.method is not None and name not in catalog.recipes:
                asking = f"Method {task.name!r}" if task.recipe else f"Backbone {card.name!r}"
                problems += unknown_name("recipe", name, catalog.recipes, asking=f"{asking}: ").problems
        name = request.data or card.data
        if name not in catalog.data:
            problems += unknown_name("data", name, catalog.data, asking=f"Backbone {card.name!r}: ").problems
        elif catalog.data[name].world != card.world:
            fitting = [other for other, data in catalog.data.items() if data.world == card.world]
            what = f"Data {name!r} shows {catalog.data[name].world!r}, backbone {card.name!r} draws {card.world!r}"
            problems.append(Problem(what, f"Data of its world: {', '.join(fitting) or 'none'}."))


def _stage(
    request: Request,
    owners: Mapping[str, Any],
    task: TrainTask,
    card: BackboneCard,
    seed: int,
    evaluators: Sequence[EvalTask],
) -> Stage:
    trains = task.method is not None and request.checkpoint is None
    recipe = owners[_recipe_owner(task, card)] if trains else None
    stage = Stage(
        task=dataclasses.replace(task, method=_with_hints(owners.get(f"method:{task.name}"), recipe)),
        card=dataclasses.replace(card, settings=owners[f"settings:{card.name}"]),
        recipe=recipe,
        data=owners[f"data:{card.name}"] if trains else None,
        seed=seed,
        key="",
        checkpoint=request.checkpoint,
    )
    if request.latents and stage.data is not None:
        stage = dataclasses.replace(stage, latents=latents_folder(card, stage.data).name)
    stage = dataclasses.replace(stage, key=_stage_key(stage, num_ranks=request.num_ranks))
    tasks = [dataclasses.replace(item, evaluator=owners[f"evaluator:{item.name}"]) for item in evaluators]
    return dataclasses.replace(stage, cells=tuple(_cell(stage, item, request.limit) for item in tasks))


def _with_hints(method: Method | None, recipe: Recipe | None) -> Method | None:
    """Write the share of hints of the recipe, or the paper's, into SeGroS where nothing else was asked for."""
    if recipe is None or not isinstance(method, SeGroS) or method.hint_ratio is not None:
        return method
    ratio = HINT_RATIO if recipe.default_hint_ratio is None else recipe.default_hint_ratio
    return dataclasses.replace(method, hint_ratio=ratio)


def _stage_key(stage: Stage, *, num_ranks: int) -> str:
    return content_key(
        {
            "task": to_jsonable(dataclasses.replace(stage.task, name="", title="", paper="")),
            "family": stage.card.family,
            "config": to_jsonable(stage.card.config),
            "weights": weights_digest(stage.card, stage.checkpoint),
            # Recomputation changes memory and speed alone.
            "recipe": to_jsonable(stage.recipe and dataclasses.replace(stage.recipe, checkpointing=None)),
            "num_ranks": num_ranks if stage.trains else 1,
            "data": data_identity(stage.data),
            "seed": stage.seed,
            "versions": {"method": version_of(stage.task.method), "family": version_of(stage.card.config)},
        }
    )


def _cell(stage: Stage, task: EvalTask, limit: int | None) -> Cell:
    frozen = stage.card.understanding_is_frozen and task.kind == "answer"
    folder = benchmark_folder(task, stage.card.world)
    determined_by = {
        "stage": _frozen_key(stage.card) if frozen else stage.key,
        "settings": to_jsonable(dataclasses.replace(stage.settings, batch_size=1)),
        "image_size_px": stage.card.image_size_px,
        "evaluator": to_jsonable(task.evaluator),
        "version": version_of(task.evaluator),
        "protocol": task.evaluator.protocol,
        "world": {stage.card.world: WORLD_VERSION if stage.card.world == "shapes" else None},
        "limit": limit,
        "files": None if folder is None else folder_content(folder),
    }
    return Cell(task=task, limit=limit, key=content_key(determined_by), frozen=frozen)


def _frozen_key(card: BackboneCard) -> str:
    """Return a hash of what determines the answers of a frozen language model: the card's own weights and the code."""
    return content_key(
        {
            "family": card.family,
            "config": to_jsonable(card.config),
            "weights": weights_digest(card, None),
            "version": version_of(card.config),
        }
    )
