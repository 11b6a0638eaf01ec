"""Options of the whole suite."""

from __future__ import annotations

from pathlib import Path

import pytest

GOLDEN = Path(__file__).parent / "golden" / "data"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let the goldens be read from another folder of the same layout."""
    parser.addoption(
        "--golden",
        type=Path,
        default=GOLDEN,
        metavar="DIR",
        help="folder of golden sets; default: the committed copies",
    )
    parser.addoption(
        "--record",
        action="store_true",
        help="record the traces of tests/regression whose version was raised or that are not recorded yet",
    )
