"""Where the files of DPG-Bench's official answerer lie; no torch is imported here."""

from __future__ import annotations

from pathlib import Path

from segros_train.files import segros_home

__all__ = ["FILES", "WEIGHTS", "missing_mplug", "mplug_folder"]

WEIGHTS = "pytorch_model.bin"
FILES = (WEIGHTS, "config.yaml", "config_bert.json", "vocab.txt")
"""What is read of the model. Source: modelscope, damo/mplug_visual-question-answering_coco_large_en v1.0.0."""


def mplug_folder() -> Path:
    """Return the folder of the model."""
    return segros_home() / "data" / "dpgbench"


def missing_mplug() -> Path | None:
    """Return the first of the model's files that is not there."""
    return next((mplug_folder() / name for name in FILES if not (mplug_folder() / name).is_file()), None)
