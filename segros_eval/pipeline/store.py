"""What a run writes and reads again: images, answers, scores and results.

Drawn images are shared by every evaluator that asks for the same prompt, seed and settings: an image's
address is the content hash of all that determines it, so it is found again whoever asks. The manifest
records each file's sha256; a file that does not match counts as missing. Answers are kept one line each,
so that an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from segros_eval.benchmarks.base import Interval, Result, Sample, Score
from segros_train.errors import PrerequisiteError
from segros_train.files import append_jsonl, atomic_write, content_key, file_sha256, read_jsonl, write_json, write_text
from segros_train.types import GenerationSettings

__all__ = [
    "AnswerStore",
    "ImageStore",
    "read_result",
    "read_scores",
    "result_from_json",
    "result_to_json",
    "write_result",
    "write_scores",
]

RESULT_FORMAT = 1

_MANIFEST = "manifest.jsonl"
_RECORD = {"file", "sha256", "prompt", "seed"}
_ANSWER = {"key", "answer"}


class ImageStore:
    """Images drawn by one model with one set of sampling settings.

    Layout: `<address>.png` and `manifest.jsonl`. Several processes may write to one folder.
    """

    def __init__(self, folder: Path, *, settings: GenerationSettings, backbone_key: str) -> None:
        """Open a store, which need not exist yet.

        Args:
            folder: Where the images lie.
            settings: Sampling settings of every image; `batch_size` does not count, it changes no image.
            backbone_key: Content key of the weights.
        """
        self.folder = folder
        self._conditions = {**dataclasses.asdict(settings), "backbone_key": backbone_key}
        del self._conditions["batch_size"]
        self._records = _manifest(folder)

    def path(self, sample: Sample) -> Path:
        """Return where the image of a sample lies, or would."""
        return self.folder / f"{self._address(sample.prompt, sample.seed)}.png"

    def put(self, sample: Sample, image: Image.Image) -> Path:
        """Keep the image of a sample, atomically, and return its path.

        Raises:
            PrerequisiteError: If the folder cannot be written.
        """
        path = self.path(sample)
        with atomic_write(path) as temporary:
            image.save(temporary, format="PNG")
        record = {"file": path.name, "sha256": file_sha256(path), "prompt": sample.prompt, "seed": sample.seed}
        append_jsonl(self.folder / _MANIFEST, {**record, "conditions": self._conditions})
        self._records[path.name] = record
        return path

    def has(self, sample: Sample) -> bool:
        """Say whether the image of a sample is there, byte for byte as recorded."""
        path = self.path(sample)
        record = self._records.get(path.name)
        return record is not None and path.is_file() and file_sha256(path) == record["sha256"]

    def missing(self, samples: Iterable[Sample]) -> list[Sample]:
        """Return the samples whose image is still to be drawn, one per image."""
        wanted = {self.path(sample): sample for sample in samples}
        return [sample for sample in wanted.values() if not self.has(sample)]

    def refresh(self) -> None:
        """Read the manifest again, after another process has written to the folder."""
        self._records = _manifest(self.folder)

    def _address(self, prompt: str, seed: int) -> str:
        return content_key({**self._conditions, "prompt": prompt, "seed": seed})[:32]


def _manifest(folder: Path) -> dict[str, Mapping[str, Any]]:
    """Return the last record of each file; lines of another form are no records."""
    records = read_jsonl(folder / _MANIFEST)
    return {record["file"]: record for record in records if isinstance(record, dict) and _RECORD <= record.keys()}


class AnswerStore:
    """Answers of one model, one JSON line each; an interrupted run goes on where it stopped."""

    def __init__(self, path: Path, *, backbone_key: str, settings: Mapping[str, Any] | None = None) -> None:
        """Open a store, which need not exist yet.

        Args:
            path: The JSON lines file.
            backbone_key: Content key of the weights.
            settings: What else determines an answer, JSON-ready (`max_new_tokens`).
        """
        self.path = path
        self._conditions = {"backbone_key": backbone_key, "settings": dict(settings or {})}
        records = [record for record in read_jsonl(path) if isinstance(record, dict) and _ANSWER <= record.keys()]
        self._answers = {record["key"]: record["answer"] for record in records}

    def put(self, sample: Sample, answer: Any) -> None:
        """Keep the answer to a sample: a text, or the log-probabilities of its choices."""
        key = self._key(sample)
        append_jsonl(self.path, {"item_id": sample.item_id, "key": key, "answer": answer})
        self._answers[key] = answer

    def get(self, sample: Sample) -> Any:
        """Return the answer to a sample, or None where there is none."""
        return self._answers.get(self._key(sample))

    def missing(self, samples: Iterable[Sample]) -> list[Sample]:
        """Return the samples that are still to be answered."""
        return [sample for sample in samples if self._key(sample) not in self._answers]

    def _key(self, sample: Sample) -> str:
        asked: dict[str, Any] = {"item_id": sample.item_id, "question": sample.prompt}
        asked |= {"images": [picture.name for picture in sample.images], "choices": list(sample.choices)}
        return content_key({**self._conditions, **asked})


def write_scores(path: Path, scores: Iterable[Score]) -> None:
    """Write one JSON line per score, atomically."""
    lines = [json.dumps(dataclasses.asdict(score), ensure_ascii=False, allow_nan=False) for score in scores]
    write_text(path, "".join(f"{line}\n" for line in lines))


def read_scores(path: Path) -> list[Score]:
    """Read the scores of an evaluation.

    Raises:
        PrerequisiteError: If the file does not exist or holds something else.
    """
    if not path.is_file():
        raise PrerequisiteError(
            f"{path} does not exist: there are no scores to read",
            "Run the evaluation first.",
        )
    try:
        return [Score(**record) for record in read_jsonl(path)]
    except (TypeError, ValueError) as error:
        raise PrerequisiteError(
            f"{path} is no file of scores: {error}",
            "Score the responses again.",
        ) from error


def result_to_json(result: Result) -> dict[str, Any]:
    """Return a result as JSON-ready data."""
    plain = {field.name: getattr(result, field.name) for field in dataclasses.fields(result)}
    intervals = {name: dataclasses.asdict(interval) for name, interval in result.intervals.items()}
    changed = {"metrics": dict(result.metrics), "intervals": intervals, "seeds": list(result.seeds)}
    return {"format": RESULT_FORMAT, **plain, **changed, "provenance": dict(result.provenance)}


def result_from_json(value: Mapping[str, Any]) -> Result:
    """Build a result from what `result_to_json` returned; fields this version does not know are left out.

    Raises:
        ValueError: If it is no result, or of a later format.
    """
    if not isinstance(value, Mapping) or value.get("format") not in range(1, RESULT_FORMAT + 1):
        raise ValueError(f"not a result of format 1 to {RESULT_FORMAT}")
    known = {field.name: value[field.name] for field in dataclasses.fields(Result) if field.name in value}
    try:
        intervals = {name: Interval(**interval) for name, interval in known["intervals"].items()}
        return Result(**{**known, "intervals": intervals, "seeds": tuple(known["seeds"])})
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not a whole result: {error}") from error


def write_result(path: Path, result: Result) -> None:
    """Write a result as a JSON file, atomically."""
    write_json(path, result_to_json(result))


def read_result(path: Path) -> Result:
    """Read a result file.

    Raises:
        PrerequisiteError: If the file is missing, damaged or no result.
    """
    try:
        return result_from_json(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise PrerequisiteError(
            f"Cannot read the result {path}: {error.strerror}",
            "Run the evaluation first.",
        ) from error
    except ValueError as error:
        raise PrerequisiteError(
            f"{path} is no result: {error}",
            "Score the responses again.",
        ) from error
