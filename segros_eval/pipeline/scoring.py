"""The last phase of a cell: from its responses to scores and a result, in files."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segros_eval.benchmarks.base import Result, Sample, Score
from segros_eval.pipeline.items import write_items
from segros_eval.pipeline.score import explained, summarise, windows
from segros_eval.pipeline.store import write_result, write_scores
from segros_eval.pipeline.tools import asks_server, open_tools

if TYPE_CHECKING:
    from segros_eval.pipeline.judges import Judges
    from segros_eval.pipeline.plan import Cell, Stage
    from segros_eval.pipeline.progress import Listener

__all__ = ["Responded", "score_responses"]

UNTRAINED = "none"
"""Name of the method that trains nothing, which the answers of a frozen language model belong to."""


@dataclasses.dataclass(frozen=True)
class Responded:
    """A cell that waits to be scored; it holds no weights.

    Attributes:
        stage: The model.
        cell: The evaluation.
        folder: The run folder.
        samples: What was asked.
        responses: An answer or image per sample, None where there is none.
        refused: Why there is none, by item id.
        seconds: What responding took.
        provenance: Versions, hashes and settings, with the seconds it took; JSON-ready.
    """

    stage: Stage
    cell: Cell
    folder: Path
    samples: Sequence[Sample]
    responses: Sequence[Any]
    refused: Mapping[str, str]
    seconds: float
    provenance: Callable[[dict[str, float]], Mapping[str, Any]]

    @property
    def judge(self) -> tuple[str, str] | None:
        """Model and revision of the judge it waits for; None where no server is asked."""
        if not asks_server(self.cell.task, self.stage.card.world):
            return None
        evaluator = self.cell.task.evaluator
        return evaluator.judge_model, evaluator.judge_revision


def score_responses(waiting: Responded, judges: Judges, listener: Listener) -> Result:
    """Score a cell and write its items, scores and result.

    Args:
        waiting: The cell.
        judges: Connects to a judge, where one is asked.
        listener: Told of the progress.

    Raises:
        PrerequisiteError: If a tool is missing, or a judge is gone.
    """
    stage, cell, task = waiting.stage, waiting.cell, waiting.cell.task
    place = waiting.folder / "evals" / task.name
    title = f"score  {task.name}: {stage.task.name} on {stage.card.name}, seed {stage.seed}"
    began = time.monotonic()
    scores: list[Score] = []
    with open_tools(task, stage.card.world, judges=judges) as tools:
        with listener.phase(title, len(waiting.samples)) as tell:
            for part, answers in windows(waiting.samples, waiting.responses):
                scores += task.evaluator.score(part, answers, tools)
                tell(len(part))
    scores = [explained(score, waiting.refused) for score in scores]
    seconds = {"respond": waiting.seconds, "score": round(time.monotonic() - began, 2)}
    result = summarise(
        task,
        scores,
        method=UNTRAINED if cell.frozen else stage.task.name,
        backbone=stage.card.name,
        seeds=(stage.seed,),
        world=stage.card.world,
        key=cell.key,
        provenance={**waiting.provenance(seconds), **tools.record},
    )
    write_items(place / "items.jsonl", waiting.samples, waiting.responses)
    write_scores(place / "scores.jsonl", scores)
    write_result(place / "result.json", result)
    return result
