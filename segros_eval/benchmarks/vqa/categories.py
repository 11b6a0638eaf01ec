"""The categories of the benchmarks of questions, and how their records name them and their options."""

from __future__ import annotations

import ast
import functools
from collections.abc import Mapping
from typing import Any

__all__ = ["COGNITION", "DIMENSIONS", "DOMAINS", "PERCEPTION", "SPLITS", "options_of", "subject_of"]

PERCEPTION = (
    "existence",
    "count",
    "position",
    "color",
    "posters",
    "celebrity",
    "scene",
    "landmark",
    "artwork",
    "OCR",
)
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
"""MME's categories, by the sum they enter."""

SPLITS = ("adversarial", "popular", "random")
"""POPE's ways to choose what is not in a picture."""

DIMENSIONS: Mapping[int, str] = {
    1: "scene_understanding",
    2: "instance_identity",
    3: "instance_attributes",
    4: "instance_location",
    5: "instances_counting",
    6: "spatial_relation",
    7: "instance_interaction",
    8: "visual_reasoning",
    9: "text_understanding",
}
"""The dimensions about pictures, by `question_type_id`; 10 to 12 are about videos and are not asked."""

DOMAINS: Mapping[str, tuple[str, ...]] = {
    "Art and Design": ("Art", "Art_Theory", "Design", "Music"),
    "Business": ("Accounting", "Economics", "Finance", "Manage", "Marketing"),
    "Science": ("Biology", "Chemistry", "Geography", "Math", "Physics"),
    "Health and Medicine": (
        "Basic_Medical_Science",
        "Clinical_Medicine",
        "Diagnostics_and_Laboratory_Medicine",
        "Pharmacy",
        "Public_Health",
    ),
    "Humanities and Social Science": ("History", "Literature", "Sociology", "Psychology"),
    "Tech and Engineering": (
        "Agriculture",
        "Architecture_and_Engineering",
        "Computer_Science",
        "Electronics",
        "Energy_and_Power",
        "Materials",
        "Mechanical_Engineering",
    ),
}
"""MMMU's disciplines with their subjects."""

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def subject_of(item_id: str) -> str:
    """Return the subject in an id, e.g. `Art_Theory` of `validation_Art_Theory_3`."""
    return item_id[item_id.index("_") + 1 : item_id.rindex("_")]


def options_of(record: Mapping[str, Any]) -> dict[str, str]:
    """Return the options of a record by letter; none of an open question."""
    options = record["options"]
    texts = _listed(options) if isinstance(options, str) else options
    return dict(zip(_LETTERS, map(str, texts), strict=False))


@functools.lru_cache(maxsize=4096)
def _listed(text: str) -> tuple[Any, ...]:
    """Read the text of a list; the same questions are read again for every model."""
    return tuple(ast.literal_eval(text))
