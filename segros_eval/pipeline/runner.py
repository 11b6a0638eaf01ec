"""Carry out a plan: train, respond, score, sum up; each phase through files, so that any can be repeated.

One device serves all phases in turn. Stage by stage the weights are trained, respond to every evaluation, and leave
the device; then what is scored in this process is scored. Evaluations by a judge wait until no weights are wanted any
more, and then one server of it scores them all.

A run folder holds `plan.json`, `train/` (metrics and checkpoints), `responses/` (images shared by every evaluator,
answers by evaluator) and `evals/<evaluator>/` (scores and result). What is finished under its key is not done again.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from segros_eval.benchmarks.base import EvalTask, Result, Sample
from segros_eval.benchmarks.kinds import QuestionBenchmark
from segros_eval.pipeline.generate import BATCH_SIZE, BatchSize, Shard, answer_questions, build_samples, draw_images
from segros_eval.pipeline.judges import Judges
from segros_eval.pipeline.keys import to_jsonable
from segros_eval.pipeline.lock import run_lock
from segros_eval.pipeline.plan import Cell, RunPlan, Stage
from segros_eval.pipeline.progress import Listener, Steps
from segros_eval.pipeline.provenance import run_provenance
from segros_eval.pipeline.ranks import Ranks, local_device
from segros_eval.pipeline.reuse import digest_of, take_up
from segros_eval.pipeline.scoring import Responded, score_responses
from segros_eval.pipeline.store import AnswerStore, ImageStore, read_result
from segros_train.errors import PrerequisiteError, memory_shortage_named, release_memory
from segros_train.files import located, segros_home, write_json

if TYPE_CHECKING:
    from segros_train.backbone import Backbone
    from segros_train.data.samples import GenerationSource, InstructionSource

__all__ = ["Outcome", "run_plan", "train_stage"]

Ended = TypeVar("Ended")

DATA_SEED = 0
"""Seed of embedded training data: fixed, so that the runs of several seeds train on the same set."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How one cell, or one training without evaluations, ended.

    Attributes:
        stage: The model.
        cell: The evaluation; None where there was only training to do.
        folder: The run folder.
        result: The numbers; None where it failed.
        failure: Why it failed; empty where it did not.
        reused: Whether the result was there already.
    """

    stage: Stage
    cell: Cell | None
    folder: Path
    result: Result | None = None
    failure: str = ""
    reused: bool = False

    @property
    def unscored_share(self) -> float:
        """Share of the items without a value."""
        if self.result is None:
            return 1.0
        total = self.result.num_samples + self.result.num_unscored
        return self.result.num_unscored / total if total else 1.0


def run_plan(
    plan: RunPlan, *, out: Path, device: str, listener: Listener, judge_flags: Mapping[str, str] | None = None
) -> list[Outcome]:
    """Carry out a plan: stage by stage what needs the weights, then what needs a judge.

    A stage or cell that fails for a reason in the user's world is recorded, and the others go on.

    Args:
        plan: What to do.
        out: Folder of run folders.
        device: Torch device, or `"auto"`.
        listener: Told of the progress.
        judge_flags: Flags of a judge server that is started, by name.

    Returns:
        How each cell ended; nothing in a process that is not the first of its run.

    Raises:
        PrerequisiteError: If another run works in one of the run folders.
    """
    ranks = Ranks.here()
    with ExitStack() as locks:
        for stage in plan.stages if ranks.is_first else ():
            locks.enter_context(run_lock(out / stage.folder))
            write_json(out / stage.folder / "plan.json", to_jsonable(stage))
            for found in take_up(stage, out / stage.folder, by_key=plan.reuse == "key"):
                listener.note(found)
        ranks.gathered({})
        judges = locks.enter_context(Judges(given=judge_flags, log=out / "judge.log"))
        cells = [
            cell for stage in plan.stages for cell in _run_stage(stage, out / stage.folder, device, listener, judges)
        ]
        waiting = sorted((cell for cell in cells if isinstance(cell, Responded)), key=lambda cell: cell.judge or ())
        scored = {id(cell): _scored(cell, judges, listener) for cell in waiting}
        return [scored[id(cell)] if isinstance(cell, Responded) else cell for cell in cells]


def _run_stage(
    stage: Stage, folder: Path, device: str, listener: Listener, judges: Judges
) -> list[Outcome | Responded]:
    """Train a stage, let it respond, and score what this process can score; the rest waits for a judge."""
    kept = {cell.key: _finished(folder, cell) for cell in stage.cells}
    if stage.cells and all(kept.values()):
        return [Outcome(stage, cell, folder, kept[cell.key], reused=True) for cell in stage.cells]
    model: _Model | str
    try:
        model = _Model(stage, folder, device, listener)
    except PrerequisiteError as error:
        if Ranks.here().num_ranks > 1:  # The others would wait for this process for ever.
            raise
        listener.note(f"{stage.folder}: {error}")
        model = str(error)
    if isinstance(model, str):
        release_memory()
        return [Outcome(stage, cell, folder, failure=model) for cell in stage.cells or (None,)]
    try:
        cells = [_run_cell(model, cell, kept[cell.key]) for cell in stage.cells]
    finally:
        model.release()
    model.ranks.gathered({})  # The weights have left the devices of the other processes too.
    cells = [
        _scored(cell, judges, listener) if isinstance(cell, Responded) and cell.judge is None else cell
        for cell in cells
    ]
    return [cell for cell in cells if cell is not None] or [Outcome(stage, None, folder)]


def _finished(folder: Path, cell: Cell) -> Result | None:
    """Return the result that is there under the cell's key, every item scored."""
    try:
        result = read_result(folder / "evals" / cell.task.name / "result.json")
    except PrerequisiteError:  # Missing or damaged: responses are kept, so it can be made again.
        return None
    return result if result.key == cell.key and result.num_unscored == 0 else None


class _Model:
    """A stage's weights, trained and loaded."""

    def __init__(self, stage: Stage, folder: Path, device: str, listener: Listener) -> None:
        self.stage, self.folder, self.listener = stage, folder, listener
        self.device = local_device() if device == "auto" else device
        self.ranks = Ranks.here()
        self.training: dict[str, Any] = {}
        self.drawing: dict[str, Any] = {}
        self.answers_at_once = BatchSize(stage.settings.batch_size or BATCH_SIZE)
        source = stage.checkpoint
        if stage.trains:
            source, self.training = train_stage(stage, folder, self.device, listener)
        self.source = source
        self._backbone: Backbone | None = None

    @property
    def shard(self) -> Shard:
        """This process's part of the items."""
        return Shard(self.ranks.rank, self.ranks.num_ranks)

    @property
    def backbone(self) -> Backbone:
        """The weights in memory, loaded when first asked for."""
        if self._backbone is None:
            with self.listener.phase(f"load  {_title(self.stage)}", 1) as tell:
                precision = self.stage.settings.options.get("precision", "auto")
                self._backbone = load_backbone(self.stage, self.source, self.device, precision=precision)
                self._backbone.eval()
                tell(1)
        return self._backbone

    @cached_property
    def images_at_once(self) -> BatchSize:
        """How many images are drawn at once: what the settings say, else what the count says that a GPU holds."""
        from segros_train.training.fitting import fitting_batch

        settings = self.stage.settings
        chosen = fitting_batch(self.backbone, settings, self.device)
        if chosen is not None:
            self.listener.note(f"Drawing {chosen.batch_size} images at once: {chosen.peak / 2**30:.0f} GiB, counted.")
            self.drawing = dataclasses.asdict(chosen)
        return BatchSize(settings.batch_size or (BATCH_SIZE if chosen is None else chosen.batch_size))

    def provenance(self, cell: Cell, seconds: Mapping[str, float]) -> dict[str, Any]:
        """Return what a result of this stage says of its origin."""
        return run_provenance(
            self.stage,
            cell,
            source=self.source,
            training=self.training,
            drawing=self.drawing,
            device=self.device,
            code=digest_of(self.folder / "evals" / cell.task.name),
            seconds=seconds,
        )

    def release(self) -> None:
        """Let go of the weights, so that the device is free for what scores."""
        self._backbone = None
        release_memory()


@memory_shortage_named("Loading the weights", "end other programs there, or take another device with --device")
def load_backbone(
    stage: Stage, source: Path | None, device: str, *, precision: Literal["auto", "fp32", "bf16"] = "fp32"
) -> Backbone:
    """Load a stage's weights: a checkpoint follows its own record, a base the stage's attention.

    Raises:
        PrerequisiteError: If weights are missing, foreign or damaged.
    """
    from segros_train.backbone import Conditioning
    from segros_train.backbones import loading

    backbone = loading.load(stage.card, source=source, device=device, precision=precision)
    if source is None:
        backbone.configure(Conditioning(attention=stage.task.attention, hint_slot=stage.task.hint_slot))
    return backbone


@memory_shortage_named("Training", "end other programs there, or take another device with --device")
def train_stage(stage: Stage, folder: Path, device: str, listener: Listener) -> tuple[Path, dict[str, Any]]:
    """Train a stage, or find it trained.

    Returns:
        The last checkpoint, and what training took.

    Raises:
        PrerequisiteError: If weights or data are missing, or the loss is not finite.
    """
    from segros_train.training.checkpoint import newest_checkpoint
    from segros_train.training.fitting import fitting
    from segros_train.training.loop import train

    assert stage.recipe is not None and stage.task.method is not None and stage.data is not None
    # Several processes find the checkpoint together, in the loop: looking for it also clears away drafts.
    done = newest_checkpoint(folder / "train" / "checkpoints") if Ranks.here().num_ranks == 1 else None
    if done is not None and done.progress.finished:
        progress, latents = done.progress, done.identity.get("latents")
        return done.path, {"seconds": progress.seconds, "num_samples": progress.num_samples, "latents": latents}
    generation, instruction = _sources(stage, listener)
    with listener.phase(f"load  {_title(stage)}", 1) as tell:
        backbone = load_backbone(stage, None, device)
        tell(1)
    recipe, choice = fitting(backbone, stage.task.method, stage.recipe)
    if choice is not None:
        listener.note(f"checkpointing={choice.checkpointing}: about {choice.peak / 2**30:.0f} GiB on the device.")
    with listener.phase(f"train  {_title(stage)}", recipe.optimizer_steps) as tell:
        outcome = train(
            backbone,
            stage.task.method,
            recipe=recipe,
            generation=generation,
            instruction=instruction,
            directory=folder / "train",
            seed=stage.seed,
            report=Steps(tell),
            crop=stage.data.crop,
        )
    chosen = {} if choice is None else dataclasses.asdict(choice)
    return outcome.checkpoint, {
        "seconds": outcome.seconds,
        "num_samples": outcome.num_samples,
        "latents": stage.latents,
        **chosen,
    }


def _sources(stage: Stage, listener: Listener) -> tuple[GenerationSource, InstructionSource | None]:
    """Open a stage's training data, with the latent cache that was asked for."""
    from segros_train.data.latent_cache import LatentCache, WithLatents
    from segros_train.data.sources.generation import open_generation
    from segros_train.data.sources.instruction import open_instruction

    assert stage.recipe is not None and stage.data is not None
    generation = open_generation(located(stage.data.generation), seed=DATA_SEED)
    if stage.latents is not None:
        cache = LatentCache(segros_home() / "latents" / stage.latents)
        listener.note(f"{len(cache):,} of {len(generation):,} images were encoded beforehand: {cache.folder}")
        generation = WithLatents(generation, cache)
    if stage.recipe.i2t_weight == 0 or stage.data.instruction is None:
        return generation, None
    return generation, open_instruction(located(stage.data.instruction), seed=DATA_SEED)


def _title(stage: Stage) -> str:
    return f"{stage.task.name} on {stage.card.name}, seed {stage.seed}"


def _run_cell(model: _Model, cell: Cell, kept: Result | None) -> Outcome | Responded | None:
    if kept is not None:
        return Outcome(model.stage, cell, model.folder, kept, reused=True)
    return _attempted(model.stage, cell, model.folder, model.listener, partial(_responded, model, cell))


def _scored(waiting: Responded, judges: Judges, listener: Listener) -> Outcome:
    stage, cell, folder = waiting.stage, waiting.cell, waiting.folder
    score = partial(score_responses, waiting, judges, listener)
    return _attempted(stage, cell, folder, listener, lambda: Outcome(stage, cell, folder, score()))


def _responded(model: _Model, cell: Cell) -> Outcome | Responded | None:
    if cell.task.kind == "harness":
        return Outcome(model.stage, cell, model.folder, _score_elsewhere(model, cell))
    samples = build_samples(model.stage, cell)
    began = time.monotonic()
    respond = _answer if isinstance(cell.task.evaluator, QuestionBenchmark) else _draw
    responses, refused = respond(model, cell.task, samples)
    seconds = round(time.monotonic() - began, 2)
    if not model.ranks.is_first:
        return None
    provenance = partial(model.provenance, cell)
    return Responded(model.stage, cell, model.folder, samples, responses, refused, seconds, provenance)


def _attempted(
    stage: Stage, cell: Cell, folder: Path, listener: Listener, work: Callable[[], Ended]
) -> Ended | Outcome:
    """Do a part of a cell; where it fails for a reason in the user's world, that is how the cell ends."""
    try:
        with memory_shortage_named(
            "The evaluation", "end other programs there, or use a device that has more; what it made is kept"
        ):
            return work()
    except PrerequisiteError as error:
        if Ranks.here().num_ranks > 1:
            raise
        listener.note(f"{stage.folder}, {cell.task.name}: {error}")
        failure = str(error)
    release_memory()
    return Outcome(stage, cell, folder, failure=failure)


def _draw(model: _Model, task: EvalTask, samples: Sequence[Sample]) -> tuple[list[Any], dict[str, str]]:
    """Return an image per sample, None where there is none, and why by item id."""
    stage = model.stage
    images = ImageStore(model.folder / "responses" / "images", settings=stage.settings, backbone_key=stage.key)
    refused: dict[str, str] = {}
    if images.missing(model.shard.of(samples)):
        backbone = model.backbone
        with model.listener.phase(f"draw  {task.name}: {_title(stage)}", len(samples)) as tell:
            size, shard = model.images_at_once, model.shard
            refused = draw_images(
                backbone, samples, images, settings=stage.settings, batch_size=size, advance=tell, shard=shard
            )
    refused = model.ranks.gathered(refused)
    images.refresh()
    return [images.path(sample) if images.has(sample) else None for sample in samples], refused


def _answer(model: _Model, task: EvalTask, samples: Sequence[Sample]) -> tuple[list[Any], dict[str, str]]:
    stage = model.stage
    assert isinstance(task.evaluator, QuestionBenchmark)
    max_new_tokens = task.evaluator.max_new_tokens
    path = model.folder / "responses" / f"{task.name}.jsonl"
    chosen = {name: value for name, value in stage.settings.options.items() if name == "precision"}
    reopen = partial(AnswerStore, path, backbone_key=stage.key, settings={"max_new_tokens": max_new_tokens} | chosen)
    answers = reopen()
    refused: dict[str, str] = {}
    if answers.missing(model.shard.of(samples)):
        backbone = model.backbone
        with model.listener.phase(f"answer  {task.name}: {_title(stage)}", len(samples)) as tell:
            refused = answer_questions(
                backbone,
                samples,
                answers,
                max_new_tokens=max_new_tokens,
                batch_size=model.answers_at_once,
                advance=tell,
                shard=model.shard,
            )
    refused = model.ranks.gathered(refused)
    answers = reopen()
    return [answers.get(sample) for sample in samples], refused


def _score_elsewhere(model: _Model, cell: Cell) -> Result:
    """Let another harness ask, score and sum up."""
    from segros_eval.pipeline.lmms_eval import harness_cell

    if model.ranks.num_ranks > 1:
        raise PrerequisiteError(f"{cell.task.name} runs in one process; start it without a launcher.")
    provenance = partial(model.provenance, cell)
    return harness_cell(model.backbone, model.stage, cell, model.folder, model.listener, provenance)
