"""The README says what is true: its commands run, its links lead somewhere, its check is the one CI runs."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FEWER = {
    "run": ("--limit", "1", "--set", "optimizer_steps=1", "--set", "num_steps=2"),
    "train": ("--set", "optimizer_steps=1"),
    "eval": ("--limit", "1", "--set", "num_steps=2"),
    "score": ("--max-unscored", "1"),
}
"""What keeps a command of each kind short: one update, one prompt, two steps of sampling.

The folder to score then lacks most of its images, which is allowed here, and only here.
"""


def blocks() -> Iterator[tuple[str, str]]:
    """Yield (language, text) of every block that a reader may run."""
    for match in BLOCK.finditer(README):
        yield match[1], match[2]


def commands() -> list[str]:
    """Return the shell commands, one per line, without the installation before them."""
    lines = "".join(text for language, text in blocks() if language == "sh").splitlines()
    return [line.removeprefix("pip install uv && ") for line in lines]


def arguments(command: str, folder: Path) -> list[str]:
    """Return what a shell in `folder` would hand to `segros`."""
    words = shlex.split(command.removeprefix("uv run segros "))
    return [
        name
        for word in words
        for name in (sorted(str(path.relative_to(folder)) for path in folder.glob(word)) if "*" in word else [word])
    ]


def run_segros(command: str, folder: Path) -> None:
    from segros_eval.cli.app import app

    words = arguments(command, folder)
    fewer = () if "--dry-run" in words else FEWER.get(words[0], ())
    done = CliRunner().invoke(app, [*words, *fewer])
    assert done.exit_code == 0, f"{command} {' '.join(fewer)}\n{done.output}\n{done.exception!r}"


def test_every_command_and_example_runs_in_order_with_fewer_steps_and_prompts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for language, text in blocks():
        if language == "python":
            exec(compile(text, "README.md", "exec"), {})
            continue
        for line in text.splitlines():
            command = line.removeprefix("pip install uv && ")
            if command != "uv run nox":
                run_segros(command, tmp_path)
    for name in ("runs/leaderboard.md", "circle.png", "map.png"):
        assert (tmp_path / name).stat().st_size > 0


def test_the_readme_runs_segros_and_nox_and_nothing_else() -> None:
    assert [command for command in commands() if not command.startswith("uv run segros ")] == ["uv run nox"]


def test_continuous_integration_runs_the_check_of_the_readme() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert "uv run nox" in commands()
    assert "uv run nox" in script


def test_the_first_command_trains_every_method_of_the_papers_main_table() -> None:
    from segros_eval.pipeline.catalog import load_catalog

    words = arguments(commands()[0], ROOT)
    assert tuple(words[words.index("--method") + 1].split(",")) == load_catalog(ROOT / "tasks").main_methods


@pytest.mark.parametrize(
    "page", ["README.md", "CONVENTIONS.md", "docs/architecture.md", "docs/extend.md", "docs/decisions/README.md"]
)
def test_links_lead_to_files_of_the_repository(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    targets = [target for target in re.findall(r"\]\(([^)#]+)", text) if "://" not in target]
    assert [target for target in targets if not ((ROOT / page).parent / target).exists()] == []


def test_every_decision_is_in_the_index() -> None:
    folder = ROOT / "docs" / "decisions"
    index = (folder / "README.md").read_text(encoding="utf-8")
    assert [
        note.name for note in folder.glob("*.md") if note.name != "README.md" and f"({note.name})" not in index
    ] == []
