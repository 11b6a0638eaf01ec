"""What was asked and where the image of each item lies, for the pictures of a report."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from segros_eval.benchmarks.base import Picture, Sample
from segros_eval.benchmarks.images import UnreadableImageError
from segros_eval.benchmarks.vqa.pictures import open_picture
from segros_train.files import atomic_write, write_text

__all__ = ["write_items"]

NUM_TILES = 12


def write_items(path: Path, samples: Sequence[Sample], responses: Iterable[Any]) -> None:
    """Write what was asked and where the image of each item lies, for the pictures of a report.

    Pictures that lie in no file of their own are kept beside it, for as many items as a report shows.

    Args:
        path: `items.jsonl` of an evaluation.
        samples: What was asked.
        responses: Per sample the path of its image, its text, or None.
    """
    lines = []
    step = max(1, len(samples) // (2 * NUM_TILES))
    for place, (sample, response) in enumerate(zip(samples, responses, strict=True)):
        shown = (response, *sample.images)
        image = next((picture for picture in shown if isinstance(picture, Path)), None)
        if image is None and sample.images and place % step == 0:
            image = _kept(sample.images[0], path.parent / "pictures" / f"{place:05d}.png")
        where = None if image is None else os.path.relpath(image, path.parent)
        lines.append(json.dumps({"item_id": sample.item_id, "prompt": sample.prompt, "image": where}) + "\n")
    write_text(path, "".join(lines))


def _kept(picture: Path | Picture, path: Path) -> Path | None:
    try:
        image = open_picture(picture)
    except UnreadableImageError:  # The item is unscored with this as its reason.
        return None
    with atomic_write(path) as temporary:
        image.save(temporary, format="PNG")
    return path
