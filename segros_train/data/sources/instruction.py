"""Sources of images with dialogues, opened by the words of a `DataCard`."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segros_train.data.reading import read_image
from segros_train.data.samples import InstructionSample
from segros_train.data.shapes.sets import InstructionSet
from segros_train.errors import PrerequisiteError, unknown_name
from segros_train.types import Turn

if TYPE_CHECKING:
    from segros_train.data.samples import InstructionSource

__all__ = ["LlavaDialogues", "dialogue_turns", "open_instruction"]

LLAVA_FILE = "llava_v1_5_mix665k.json"
IMAGE_PLACEHOLDER = "<image>"

logger = logging.getLogger(__name__)


def open_instruction(source: str, *, seed: int, limit: int | None = None) -> InstructionSource:
    """Open a set of dialogues about images.

    Args:
        source: `"shapes"` (the embedded world), or `"llava:<folder>"` with `llava_v1_5_mix665k.json` and the images
            below `tuning_data/` or beside it.
        seed: Seed of a world that is drawn; published sets do not depend on it.
        limit: Take the first items only.

    Raises:
        PrerequisiteError: If the source is unknown, missing, empty or not of its layout.
    """
    kind, _, where = source.partition(":")
    if kind == "shapes":
        return InstructionSet(seed) if limit is None else InstructionSet(seed, limit)
    if kind == "llava":
        return LlavaDialogues.open(where, limit)
    raise unknown_name("source of dialogues", source, ["shapes", "llava:..."])


@dataclass(frozen=True)
class LlavaDialogues:
    """LLaVA-1.5's instruction mixture, as far as its rows have an image.

    Attributes:
        images: Folder that the rows' image paths start from.
        rows: Row number in the file, image path and dialogue of each item.
        num_without_image: Rows left out because they are about no image.
        num_without_turn: Rows left out because no question of theirs has an answer.
    """

    images: Path
    rows: tuple[tuple[int, str, tuple[Turn, ...]], ...]
    num_without_image: int
    num_without_turn: int

    @classmethod
    def open(cls, where: str, limit: int | None = None) -> LlavaDialogues:
        """Read the list of dialogues; what is left out is counted and logged."""
        folder = Path(where).expanduser()
        listing = folder / LLAVA_FILE
        try:
            records = json.loads(listing.read_text(encoding="utf-8"))
            pictured = [(row, record) for row, record in enumerate(records) if record.get("image")]
            parsed = [(row, record["image"], dialogue_turns(record["conversations"])) for row, record in pictured]
        except OSError as error:
            raise PrerequisiteError(f"Cannot read {listing}: {error.strerror}. Fetch the data set first.") from error
        except (ValueError, AttributeError, KeyError, TypeError) as error:
            raise PrerequisiteError(
                f"{listing} is not a list of records with id, image and conversations ({error!r}). Fetch it again."
            ) from error
        rows = [item for item in parsed if item[2]]
        if not rows:
            raise PrerequisiteError(f"{listing} holds no dialogue about an image.")
        nested = folder / "tuning_data"
        found = cls(
            images=nested if nested.is_dir() else folder,
            rows=tuple(rows[:limit]),
            num_without_image=len(records) - len(pictured),
            num_without_turn=len(parsed) - len(rows),
        )
        logger.info(
            "%s: %d dialogues; left out %d without image, %d without an answered question.",
            listing.name,
            len(rows),
            found.num_without_image,
            found.num_without_turn,
        )
        return found

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> InstructionSample:
        row, image, dialogue = self.rows[index]
        # The file's own ids repeat, row numbers do not.
        item_id = f"{row}:{image}"
        return InstructionSample(item_id, read_image(self.images / image, item_id=item_id), dialogue)


def dialogue_turns(conversation: Iterable[Mapping[str, Any]]) -> tuple[Turn, ...]:
    """Pair each question with the answer that follows it.

    Answers before the first question are skipped, the image placeholder is removed: the backbone knows where its
    image stands.

    Args:
        conversation: Records of `from` (`"human"` or `"gpt"`) and `value`.

    Source: reconstruction-alignment, directory Harmon, map function of the LLaVA dialogues.
    """
    turns: list[Turn] = []
    question: str | None = None
    for message in conversation:
        if message["from"] == "human":
            question = message["value"].replace(IMAGE_PLACEHOLDER, "").strip()
        elif question is not None:
            turns.append(Turn(question, message["value"].strip()))
            question = None
    return tuple(turns)
