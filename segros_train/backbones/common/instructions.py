"""Requests to describe an image: the text of a sample that is rebuilt from its hints without a caption."""

from __future__ import annotations

from pathlib import Path

from segros_train.errors import PrerequisiteError

__all__ = ["INSTRUCTIONS", "instructions_from", "read_instructions"]

INSTRUCTIONS = (
    "Describe this picture.",
    "Describe everything you can see here.",
    "What does this image show?",
    "Tell me what is in the picture.",
    "Give a detailed account of this image.",
    "Write a caption for this picture.",
    "Summarise the scene in a few words.",
    "Which objects appear in this image?",
    "Name the main subject and its surroundings.",
    "Explain what the viewer is looking at.",
    "Put this picture into words.",
    "Describe the colours, shapes and positions you notice.",
    "How would you describe this scene to someone who cannot see it?",
    "List what is visible, from front to back.",
    "Say what stands out in this image.",
    "Report the contents of the picture carefully.",
    "What is going on in this scene?",
    "Describe the layout of this image.",
    "Which things are next to each other in the picture?",
    "Give one sentence that captures this image.",
    "Describe the picture as precisely as you can.",
    "What would a good title for this image mention?",
    "Describe the background as well as the foreground.",
    "Tell the story of this picture.",
    "Note the number, colour and place of every object.",
    "What kind of picture is this, and what does it contain?",
    "Describe the light, the materials and the mood.",
    "Go through the image from left to right and say what you find.",
    "Which details make this picture what it is?",
    "Offer a short but complete description.",
    "Describe what you see without guessing at anything else.",
    "Characterise the objects and how they relate to each other.",
    "Turn this image into a paragraph of text.",
    "What could you draw again after one look at this picture?",
    "Describe this image so that an artist could paint it.",
    "Sum up the most important elements of the picture.",
    "What is shown in the middle, and what around it?",
    "Describe the appearance of each object in turn.",
    "Look closely and write down what the picture holds.",
    "Give a plain description of the scene.",
)


def read_instructions(path: Path) -> tuple[str, ...]:
    """Read instructions from a UTF-8 text file, one per line; blank lines are left out.

    Raises:
        PrerequisiteError: If the file cannot be read or holds none.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise PrerequisiteError(f"Cannot read the instructions {path}: {error}.") from error
    instructions = tuple(line.strip() for line in lines if line.strip())
    if not instructions:
        raise PrerequisiteError(f"{path} holds no instruction; write one per line.")
    return instructions


def instructions_from(file: str | None) -> tuple[str, ...]:
    """Return the instructions of a user's file, or the package's own where there is none.

    Raises:
        PrerequisiteError: If the file cannot be read or holds none.
    """
    return INSTRUCTIONS if file is None else read_instructions(Path(file))
