"""Where the detector's official weights lie; no torch is imported here."""

from __future__ import annotations

from pathlib import Path

from segros_eval.benchmarks.fetch import held_to_first_copy
from segros_train.errors import PrerequisiteError
from segros_train.files import file_sha256, segros_home

__all__ = ["CLIP_SHA256", "checked_checkpoint", "detector_files"]

CHECKPOINTS = (
    "mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco_20220504_001756-743b7d99.pth",
    "mask2former_swin-s-p4-w7-224_8xb2-lsj-50e_coco_20220504_001756-c9d0c4f2.pth",
)
"""The official checkpoint as published for mmdet 2.x, and the same weights for 3.x; a name ends with its digest."""
CLIP_FILE = "ViT-L-14.pt"
CLIP_SHA256 = "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836"
"""Its digest, whole. Source: openai/CLIP clip/clip.py, where the address holds it."""


def detector_files() -> tuple[Path, Path]:
    """Return where the checkpoint and the colour classifier's weights lie, or should."""
    folder = segros_home() / "data" / "geneval"
    found = [folder / name for name in CHECKPOINTS if (folder / name).is_file()]
    return (found or [folder / CHECKPOINTS[0]])[0], folder / CLIP_FILE


def checked_checkpoint(path: Path) -> str:
    """Return the sha256 of a checkpoint, which must begin as its name ends and be that of the first copy.

    Eight letters are all that its authors publish: who makes a file for them passes for the first copy.

    Raises:
        PrerequisiteError: If the file is missing or of other content.
    """
    if not path.is_file():
        raise PrerequisiteError(
            f"The detector's weights are missing: {path} does not exist",
            "Get them with `segros data fetch geneval`.",
        )
    digest, named = file_sha256(path), path.stem.rpartition("-")[2]
    if not digest.startswith(named):
        raise PrerequisiteError(
            f"{path} is damaged: its sha256 is {digest[:12]}…, its name says {named}…",
            "Fetch it again with `segros data fetch geneval`.",
        )
    return held_to_first_copy(path, digest)
