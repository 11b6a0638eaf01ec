"""Requests to describe an image, as a configuration of Harmon chooses them."""

from __future__ import annotations

from segros_train.backbones.harmon.config import HarmonConfig
from segros_train.backbones.instructions import INSTRUCTIONS, instructions_from, read_instructions

__all__ = ["INSTRUCTIONS", "instructions_of", "read_instructions"]


def instructions_of(config: HarmonConfig) -> tuple[str, ...]:
    """Return the instructions of a configuration: those of its file, or the package's own.

    Raises:
        PrerequisiteError: If the file cannot be read or holds none.
    """
    return instructions_from(config.instructions_file)
