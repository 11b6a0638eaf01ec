"""What a number depends on, as digests: declared values, weights and source code.

Source files enter with their bytes, so a changed line makes another key: a result is never taken for one that other
code computed. Only the code that a stage runs counts; work on another family or on the tables changes no key.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import segros_train
from segros_train.backbones import SHIPPED_WEIGHTS
from segros_train.errors import PrerequisiteError
from segros_train.files import file_sha256
from segros_train.types import BackboneCard, DataCard

__all__ = ["encoding_identity", "evaluation_code", "plain", "training_code", "weights_digest"]

TRAIN = Path(segros_train.__file__).parent
EVAL = Path(__file__).parent
IMPORTED = re.compile(r"from segros_eval\.(evaluators\.\w+|clusters|pictures|question_\w+) import")


def plain(value: Any) -> Any:
    """Return `value` as JSON-ready data; a dataclass carries the name of its type.

    Raises:
        TypeError: If a value has no canonical form.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Path):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {"type": type(value).__name__, **fields}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(item) for item in value]
    raise TypeError(f"{type(value).__name__} has no plain form.")


def training_code(family: str) -> str:
    """Return the digest of the code that makes weights and draws with them, for one family of backbones."""
    folders = ("", "methods", "data", "backbones", f"backbones/{family}")
    return _digest(path for folder in folders for path in (TRAIN / folder).glob("*.py"))


def evaluation_code(evaluator: Any) -> str:
    """Return the digest of the code that asks and scores for one evaluator.

    It is the evaluator's module, those named after it, its tools, and what these import of evaluators, questions and
    intervals.
    """
    spec = importlib.util.find_spec(type(evaluator).__module__)
    module = Path(spec.origin) if spec is not None and spec.origin else None
    found = set(module.parent.glob(f"{module.stem}*.py")) if module is not None else set()
    found |= {path for need in getattr(evaluator, "needs", ()) for path in EVAL.glob(f"{need}*.py")}
    waiting = list(found)
    while waiting:
        text = waiting.pop().read_text(encoding="utf-8")
        imported = {EVAL / f"{name.replace('.', '/')}.py" for name in IMPORTED.findall(text)}
        new = {path for path in imported - found if path.is_file()}
        found |= new
        waiting += new
    shared = {EVAL / name for name in ("folders.py", "respond.py", "scene.py", "scene_judge.py", "statistics.py")}
    return _digest(found | shared)


def weights_digest(card: BackboneCard, checkpoint: Path | None) -> dict[str, str]:
    """Return a digest per file of the weights a stage starts from.

    Published files count by their declared digest, or by their address where none is known.

    Raises:
        PrerequisiteError: If `checkpoint` is not a checkpoint of ours.
    """
    if checkpoint is not None:
        return _folder_digest(checkpoint)
    if card.weights:
        return {file.role: file.sha256 or f"{file.repo}/{file.filename or ''}" for file in card.weights}
    folder = SHIPPED_WEIGHTS / card.name
    return _folder_digest(folder) if folder.is_dir() else {}


def encoding_identity(card: BackboneCard, data: DataCard) -> dict[str, Any]:
    """Return what determines what frozen parts make of training images, whatever was trained on top of them."""
    return {
        "config": plain(card.config),
        "weights": weights_digest(card, None),
        "image_size_px": card.image_size_px,
        "generation": data.generation,
        "revision": data.revision,
    }


def _folder_digest(folder: Path) -> dict[str, str]:
    if not (folder / "config.json").is_file():
        raise PrerequisiteError(
            f"{folder} is not a checkpoint: it has no config.json. Name a folder that `segros train` wrote, "
            "e.g. runs/<run>/train/checkpoints/<step>."
        )
    return {
        path.name: file_sha256(path) for path in sorted(folder.iterdir()) if path.suffix in (".json", ".safetensors")
    }


def _digest(paths: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()
