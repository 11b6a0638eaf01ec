"""A backbone of ours behind lmms-eval's model interface, and its numbers in our schema.

lmms-eval hands over requests: a text, the pictures of a document, and how to decode. They are answered through the
same store and batches as our own questions, so that an interrupted run goes on where it stopped. Decoding is greedy;
a task that samples, or weighs texts by their likelihood, is refused.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from segros_eval.benchmarks.base import Interval, Picture, Result, Sample, Score
from segros_eval.benchmarks.images import read_image
from segros_eval.benchmarks.lmms_eval import LmmsTask, missing_harness
from segros_eval.benchmarks.vqa.pictures import Joined
from segros_eval.pipeline.generate import BATCH_SIZE, BatchSize, answer_questions
from segros_eval.pipeline.store import AnswerStore, write_result, write_scores
from segros_train.errors import PrerequisiteError

if TYPE_CHECKING:
    from segros_eval.pipeline.plan import Cell, Stage
    from segros_eval.pipeline.progress import Listener
    from segros_train.backbone import Backbone

__all__ = ["HarnessOutcome", "harness_cell", "run_harness"]

LONGEST_ANSWER = 1024
"""New tokens where a task names no limit; lmms-eval's own models take as many."""


@dataclass(frozen=True)
class HarnessOutcome:
    """What lmms-eval made of the answers.

    Attributes:
        metrics: The task's metrics; shares in percent.
        intervals: From lmms-eval's standard errors.
        scores: A score per document.
        version: The task's own version.
    """

    metrics: Mapping[str, float | None]
    intervals: Mapping[str, Interval]
    scores: tuple[Score, ...]
    version: str


def run_harness(
    backbone: Backbone,
    evaluator: LmmsTask,
    *,
    store: Callable[..., AnswerStore],
    batch_size: int,
    limit: int | None = None,
    advance: Callable[[int], None] = lambda count: None,
) -> HarnessOutcome:
    """Let lmms-eval run one task on a backbone.

    Args:
        backbone: What answers.
        evaluator: The task.
        store: Opens the store of answers that were made under some `settings`.
        batch_size: Questions answered at once.
        limit: Documents asked, from the start; None for all.
        advance: Told how many answers are there, as they come.

    Raises:
        PrerequisiteError: If lmms-eval is missing, does not know the task, cannot load its data, or asks for what no
            backbone can do.
    """
    if lacking := list(missing_harness()):
        raise PrerequisiteError.of(lacking)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    manager = TaskManager("ERROR")
    if evaluator.task not in manager.all_tasks:
        raise PrerequisiteError(
            f"lmms-eval has no task {evaluator.task!r}",
            "`python -m lmms_eval --tasks list` shows what there is.",
        )
    model = _model(_Answering(backbone, evaluator, store, BatchSize(batch_size), advance))
    try:
        found = simple_evaluate(
            model=model,
            tasks=[_declared(manager, evaluator)],
            task_manager=manager,
            batch_size=batch_size,
            limit=limit,
            bootstrap_iters=0,
            log_samples=True,
            verbosity="ERROR",
        )
    except (FileNotFoundError, ConnectionError) as error:
        raise PrerequisiteError(
            f"lmms-eval cannot load the data of {evaluator.task}: {error}",
            "Log in to the hub, or name data with --set dataset_path=...",
        ) from error
    if found is None:
        raise PrerequisiteError(f"lmms-eval gave no result for {evaluator.task} in this process.")
    return _outcome(evaluator.task, found)


def _declared(manager: Any, evaluator: LmmsTask) -> Any:
    """Return the task by name, or its declaration with the data replaced."""
    if evaluator.dataset_path is None:
        return evaluator.task
    # Read as a group of its own the declaration keeps its functions, which a copy by name would lose.
    config = dict(manager._get_config(evaluator.task))
    place = Path(evaluator.dataset_path)
    split = config.get("test_split") or config.get("validation_split") or "test"
    if place.exists():
        files = [str(place)] if place.is_file() else [str(path) for path in sorted(place.rglob("*.parquet"))]
        if not files:
            raise PrerequisiteError(f"dataset_path {place} holds no parquet file.")
        config |= {"dataset_path": "parquet", "dataset_name": None, "dataset_kwargs": {"data_files": {split: files}}}
    else:
        config["dataset_path"] = evaluator.dataset_path
    return config


def harness_cell(
    backbone: Backbone,
    stage: Stage,
    cell: Cell,
    folder: Path,
    listener: Listener,
    provenance: Callable[[dict[str, float]], Mapping[str, Any]],
) -> Result:
    """Run a task of lmms-eval as a cell of a run: answers, scores and result lie where those of our own do.

    Args:
        backbone: What answers.
        stage: The model.
        cell: The evaluation.
        folder: The run folder.
        listener: Told of the progress.
        provenance: Versions, hashes and settings, with the seconds it took; JSON-ready.

    Raises:
        PrerequisiteError: See `run_harness`.
    """
    name, evaluator = cell.task.name, cell.task.evaluator
    assert isinstance(evaluator, LmmsTask)
    store = partial(AnswerStore, folder / "responses" / f"{name}.jsonl", backbone_key=stage.key)
    batch_size, began = stage.settings.batch_size or BATCH_SIZE, time.monotonic()
    with listener.phase(f"answer  {name}: {stage.task.name} on {stage.card.name}, seed {stage.seed}", None) as tell:
        found = run_harness(backbone, evaluator, store=store, batch_size=batch_size, limit=cell.limit, advance=tell)
    unscored = sum(score.status == "unscored" for score in found.scores)
    result = Result(
        method=stage.task.name,
        backbone=stage.card.name,
        evaluator=name,
        metrics=found.metrics,
        intervals=found.intervals,
        num_samples=len(found.scores) - unscored,
        num_unparsed=0,
        num_unscored=unscored,
        seeds=(stage.seed,),
        protocol=f"{evaluator.protocol} version={found.version}",
        world=stage.card.world,
        key=cell.key,
        provenance=provenance({"respond": round(time.monotonic() - began, 2)}),
    )
    write_scores(folder / "evals" / name / "scores.jsonl", found.scores)
    write_result(folder / "evals" / name / "result.json", result)
    return result


@dataclass(frozen=True)
class _Shown:
    """A picture that a task holds in memory; its name is its place in the task's data."""

    name: str
    image: Image.Image

    def open(self) -> Image.Image:
        return read_image(self.image)


@dataclass(frozen=True)
class _Answering:
    """How requests become answers."""

    backbone: Backbone
    evaluator: LmmsTask
    store: Callable[..., AnswerStore]
    batch_size: BatchSize
    advance: Callable[[int], None]

    def generate(self, requests: Sequence[Any], documents: Mapping[str, Any]) -> list[str]:
        """Return the answers in order of the requests."""
        answers: dict[int, str] = {}
        groups: dict[tuple[int, tuple[str, ...]], list[int]] = {}
        for place, request in enumerate(requests):
            groups.setdefault(self._decoding(request.args[1]), []).append(place)
        for (max_new_tokens, stops), places in groups.items():
            samples = [self._sample(requests[place], documents) for place in places]
            store = self.store(settings={"max_new_tokens": max_new_tokens, "data": self.evaluator.dataset_path})
            refused = answer_questions(
                self.backbone,
                samples,
                store,
                max_new_tokens=max_new_tokens,
                batch_size=self.batch_size,
                advance=self.advance,
            )
            if refused:
                item, reason = next(iter(refused.items()))
                raise PrerequisiteError(
                    f"{len(refused)} of {len(samples)} questions of {self.evaluator.task} cannot be answered, e.g. "
                    f"{item}: {reason}. lmms-eval has no place for an item without an answer."
                )
            answers |= {place: _cut(store.get(one), stops) for place, one in zip(places, samples, strict=True)}
        return [answers[place] for place in range(len(requests))]

    def _decoding(self, wanted: Mapping[str, Any]) -> tuple[int, tuple[str, ...]]:
        if wanted.get("do_sample") and (wanted.get("temperature") or 0) > 0:
            raise PrerequisiteError(f"{self.evaluator.task} samples its answers; backbones decode greedily.")
        if (wanted.get("num_beams") or 1) > 1:
            raise PrerequisiteError(f"{self.evaluator.task} searches with beams; backbones decode greedily.")
        stops = wanted.get("until") or ()
        return int(wanted.get("max_new_tokens") or LONGEST_ANSWER), (stops,) if isinstance(stops, str) else tuple(stops)

    def _sample(self, request: Any, documents: Mapping[str, Any]) -> Sample:
        text, _, doc_to_visual, doc_id, task, split = request.args
        visuals = doc_to_visual(documents[task][split][doc_id]) or []
        if not all(isinstance(visual, Image.Image) for visual in visuals):
            raise PrerequisiteError(f"{task} shows more than pictures (a video or a sound), which no backbone takes.")
        item_id = f"{task}/{split}/{doc_id}"
        shown: tuple[Path | Picture, ...] = tuple(_Shown(f"{item_id}/{k}", one) for k, one in enumerate(visuals))
        if len(shown) > 1 and self.evaluator.multi_image != "all":
            shown = (Joined(shown),) if self.evaluator.multi_image == "joined" else shown[:1]
        return Sample(item_id, item_id, "answer", text, images=shown)


def _cut(answer: str, stops: Sequence[str]) -> str:
    for stop in stops:
        answer = answer.split(stop, 1)[0] if stop else answer
    return answer


def _model(answering: _Answering) -> Any:
    """Return the backbone as a model of lmms-eval's simple kind."""
    from lmms_eval.api.model import lmms

    class SegrosModel(lmms):
        """Answers requests through a backbone."""

        is_simple = True

        def generate_until(self, requests: list[Any]) -> list[str]:
            return answering.generate(requests, self.task_dict)

        def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
            raise PrerequisiteError(
                f"{answering.evaluator.task} weighs whole texts by their likelihood, which backbones do not give",
                "Take a task that lets the model answer.",
            )

        def generate_until_multi_round(self, requests: list[Any]) -> list[str]:
            raise PrerequisiteError(f"{answering.evaluator.task} talks in several rounds, which backbones do not.")

    return SegrosModel()


def _outcome(task: str, found: Mapping[str, Any]) -> HarnessOutcome:
    """Turn lmms-eval's results into ours: a share becomes a percentage, what is no number is left out."""
    numbers = {
        name.partition(",")[0]: float(value)
        for name, value in found["results"][task].items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    }
    samples = list(found.get("samples", {}).get(task, ()))
    metrics: dict[str, float | None] = {}
    intervals: dict[str, Interval] = {}
    for name, value in numbers.items():
        if "_stderr" in name or name == "samples":
            continue
        factor = 100 if 0 <= value <= 1 and all(0 <= one <= 1 for one in _values(samples, name)) else 1
        metrics[name] = factor * value
        error = numbers.get(f"{name}_stderr")
        if error:
            reach = 1.96 * factor * error
            intervals[name] = Interval(factor * value - reach, factor * value + reach, "lmms-eval's standard error")
    scores = tuple(_score(task, sample, metrics) for sample in samples)
    return HarnessOutcome(metrics, intervals, scores, str(found.get("versions", {}).get(task, "")))


def _values(samples: Sequence[Mapping[str, Any]], metric: str) -> list[float]:
    """Return what single items are worth under a metric, as far as the task says."""
    values = [sample.get(metric) for sample in samples]
    plain = [value.get("score") if isinstance(value, Mapping) else value for value in values]
    return [float(value) for value in plain if isinstance(value, (bool, int, float)) and math.isfinite(value)]


def _score(task: str, sample: Mapping[str, Any], metrics: Mapping[str, Any]) -> Score:
    """Return an item's score: the value that the task gives it under its first metric, else none."""
    item_id = f"{task}/{sample['doc_id']}"
    raw = {"answer": sample.get("filtered_resps", sample.get("resps")), "gold": str(sample.get("target", ""))}
    for name in metrics:
        for value in _values([sample], name):
            return Score(item_id, item_id, raw, None, "scored", value)
    return Score(item_id, item_id, raw, None, "unscored", None, "the task gives no value to single items")
