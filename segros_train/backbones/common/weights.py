"""Where weights lie, as all families have it: checkpoints of ours, and the hub's cache. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from segros_train.errors import PrerequisiteError, Problem
from segros_train.files import file_sha256
from segros_train.types import BackboneCard, WeightFile

__all__ = ["CHECKPOINT_FILES", "Located", "SHIPPED_WEIGHTS", "absent", "in_cache", "locate_checkpoint"]

SHIPPED_WEIGHTS = Path(__file__).parent.parent.parent / "weights"

CHECKPOINT_FILES = ("config.json", "model.safetensors", "tokenizer.json")


@dataclass(frozen=True)
class Located:
    """What was found of a card's weights.

    Attributes:
        checkpoint: Folder of a checkpoint of ours; None where published files serve.
        files: Published files by role; beside a checkpoint, those that it lies over.
        overlays: Published files that lie over `files`, the first lowest.
        missing: A problem per missing file.
    """

    checkpoint: Path | None = None
    files: Mapping[str, Path] = field(default_factory=dict)
    overlays: tuple[Path, ...] = ()
    missing: tuple[Problem, ...] = ()

    def require(self, card: BackboneCard, source: Path | None) -> None:
        """Raise PrerequisiteError if a file is missing, or a published one has another digest than the card declares.

        Args:
            card: What the files are of.
            source: A folder of the user's own, whose files may be others than the published ones.
        """
        if self.missing:
            raise PrerequisiteError.of(self.missing)
        for weight in card.weights:
            path = self.files.get(weight.role)
            if weight.sha256 is None or path is None or source in path.parents:
                continue
            if (digest := file_sha256(path)) != weight.sha256:
                raise PrerequisiteError(
                    f"{path} is not the {weight.role} of {card.name}: its sha256 is {digest}, declared is "
                    f"{weight.sha256}",
                    "Fetch it again.",
                )


def locate_checkpoint(card: BackboneCard, source: Path | None) -> Located | None:
    """Find a checkpoint of ours; return None where published files are to be looked for.

    Args:
        card: What to look for.
        source: A folder; None for shipped weights.
    """
    if source is not None and not source.is_dir():
        return Located(
            missing=(Problem(f"{source} is no folder", "Name a checkpoint or a folder with the published files."),)
        )
    folder = SHIPPED_WEIGHTS / card.name if source is None else source
    if _is_checkpoint(folder) or (source is None and not card.weights):
        lacking = [name for name in CHECKPOINT_FILES if not (folder / name).is_file()]
        remedy = "The checkpoint is incomplete: take another."
        if source is None:
            remedy = "Reinstall segros."
        return Located(
            folder,
            missing=tuple(Problem(f"Weights of {card.name}: {folder / name} is missing", remedy) for name in lacking),
        )
    if source is not None and not card.weights:
        return Located(
            missing=(Problem(f"{source} holds no checkpoint of {card.name}: config.json is missing", "Take another."),)
        )
    return None


def _is_checkpoint(folder: Path) -> bool:
    """Tell a checkpoint of ours from a clone of a hub repository, which may also hold a `config.json`."""
    try:
        values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(values, dict) and "family" in values


def absent(card: BackboneCard, weight: WeightFile, name: str, *, place: Path, whole: bool = False) -> Problem:
    """Say that a published file is missing.

    Args:
        card: Whose file it is.
        weight: Its role and repository.
        name: Its name there.
        place: Folder to download it to.
        whole: Whether to download the whole repository, as where the file may have other names.
    """
    asked = weight.repo if whole else f"{weight.repo} {name}"
    return Problem(
        f"{name} of {weight.repo} ({weight.role} of {card.name}) is missing", f"hf download {asked} --local-dir {place}"
    )


def in_cache(weight: WeightFile, *names: str) -> Path | None:
    """Return the first of these files of a repository that the hub's cache holds."""
    from huggingface_hub import try_to_load_from_cache

    for name in names:
        found = try_to_load_from_cache(weight.repo, name)
        if isinstance(found, str):
            return Path(found)
    return None
