"""Options of the whole suite, and the golden sets that they name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from golden_recipe import with_weights

COMMITTED = Path(__file__).parent / "golden" / "data"

OURS = frozenset({"mplug"})
"""Sets that this project records itself (`nox -s mplug`): where `--golden` lacks them, the committed copy is read."""

ASKED = pytest.StashKey[bool]()
"""Whether `--golden` was given."""

TAKEN = pytest.StashKey[set[str]]()
"""Sets that were asked of `--golden` and read from the committed copy instead."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let the goldens be read from another folder of the same layout."""
    parser.addoption(
        "--golden",
        type=Path,
        metavar="DIR",
        help="folder of golden sets, which must hold every set that the chosen tests ask for; "
        "default: the committed copies",
    )
    parser.addoption(
        "--record",
        action="store_true",
        help="record the traces of tests/regression whose version was raised or that are not recorded yet",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Take the committed goldens where no others are asked for; refuse a folder of goldens that does not exist."""
    asked = config.getoption("--golden")
    config.stash[ASKED], config.stash[TAKEN] = asked is not None, set()
    if asked is None:
        config.option.golden = COMMITTED
    elif not asked.is_dir():
        raise pytest.UsageError(
            f"--golden asks for the folder {asked.absolute()}, which does not exist; "
            "name a folder of golden sets, or leave the option out for the committed ones"
        )


@pytest.fixture(scope="session")
def golden_set(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Give the folder (or file) of a set by name.

    Without `--golden`, a set that is not committed skips its tests; a set that the option's folder lacks fails them.
    """

    def find(name: str) -> Path:
        path = pytestconfig.getoption("--golden") / name
        if path.exists():
            return with_weights(path, tmp_path_factory.mktemp("golden") / name)
        if name in OURS:
            pytestconfig.stash[TAKEN].add(name)
            return COMMITTED / name
        if not pytestconfig.stash[ASKED]:
            pytest.skip(f"the golden set {name} is not committed; `--golden DIR` reads it from a folder that holds it")
        found = ", ".join(sorted(entry.name for entry in path.parent.iterdir())) or "nothing"
        pytest.fail(
            f"--golden asks for the set {name} in {path.parent.absolute()}, which holds {found}; "
            "add the set, choose tests of the sets that are there, or leave the option out for the committed ones",
            pytrace=False,
        )

    return find


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say which sets were not read from where `--golden` points."""
    if taken := sorted(config.stash[TAKEN]):
        asked = config.getoption("--golden")
        terminalreporter.write_line(f"golden sets not in {asked}, read from the committed copy: {', '.join(taken)}")
