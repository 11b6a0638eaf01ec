"""Official files of benchmarks: fetched once, checked by digest, kept below `$SEGROS_HOME/data`.

A file is pinned by the strongest digest that is known of it: its sha256, the beginning of it (which the name of a
published checkpoint may hold), or git's name of its content. Whatever is known, the sha256 of the first copy is
recorded beside it, and every later copy must be the same.
"""

from __future__ import annotations

import hashlib
import json
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from segros_train.errors import PrerequisiteError
from segros_train.files import file_sha256, segros_home, write_json

__all__ = ["BenchmarkData", "PinnedFile", "fetch_file", "file_fault", "home_of"]

CHUNK_BYTES = 1 << 20
TIMEOUT_SECONDS = 30
PARTIAL_CONTENT = 206
NOTHING_LEFT = 416
RECORD = "sha256.json"
"""File of the digests of first copies."""


@dataclass(frozen=True)
class PinnedFile:
    """A published file.

    Attributes:
        name: Name in the benchmark's folder.
        url: Where its authors publish it.
        sha256: Digest of the version that the protocol means, or the beginning of it; empty where none is known.
        git_blob: Git's name of its content (`git hash-object`), where that is known.
    """

    name: str
    url: str
    sha256: str = ""
    git_blob: str = ""


@dataclass(frozen=True)
class BenchmarkData:
    """The official files of a benchmark; a value of `tasks/data.py`.

    Attributes:
        name: Name on the command line, and of the folder.
        files: What it consists of.
        licence: Licence of the files.
    """

    name: str
    files: tuple[PinnedFile, ...]
    licence: str = ""


def home_of(data: BenchmarkData) -> Path:
    """Return the folder of a benchmark's files."""
    return segros_home() / "data" / data.name


def file_fault(file: PinnedFile, folder: Path) -> str | None:
    """Say what is wrong with a file: missing, or of another digest; None where it is right."""
    path = folder / file.name
    if not path.is_file():
        return "missing"
    return _content_fault(file, path, _recorded(folder).get(file.name, ""))


def _content_fault(file: PinnedFile, path: Path, recorded: str) -> str | None:
    """Say how the content of `path` differs from what is known of it."""
    digest = file_sha256(path)
    if not digest.startswith(file.sha256):
        return f"sha256 is {digest[:12]}…, expected {file.sha256[:12]}…"
    if file.git_blob and (found := _git_blob(path)) != file.git_blob:
        return f"git's name of it is {found[:12]}…, expected {file.git_blob[:12]}…"
    if recorded and digest != recorded:
        return f"sha256 is {digest[:12]}…, the first copy's was {recorded[:12]}…"
    return None


def _git_blob(path: Path) -> str:
    digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _recorded(folder: Path) -> dict[str, str]:
    """Return the digests of first copies by file name."""
    path = folder / RECORD
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def fetch_file(file: PinnedFile, folder: Path, *, advance: Callable[[int], None]) -> Path:
    """Fetch a file, going on where an earlier attempt stopped.

    Args:
        file: What to fetch.
        folder: Where it goes.
        advance: Told how many bytes have come.

    Raises:
        PrerequisiteError: If it cannot be reached, or is not what the protocol means.
    """
    path, partial = folder / file.name, folder / f".{file.name}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _download(file.url, partial, advance)
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        raise PrerequisiteError(
            f"Cannot fetch {file.url}: {getattr(error, 'reason', error)}. Without a network, fetch it elsewhere and "
            f"put it at {path}; `segros data check` tells whether it is right."
        ) from error
    except OSError as error:
        raise PrerequisiteError(f"Cannot write to {folder}: {error.strerror}. Set $SEGROS_HOME to another.") from error
    recorded = _recorded(folder)
    fault = _content_fault(file, partial, recorded.get(file.name, ""))
    if fault is not None:
        partial.unlink()
        raise PrerequisiteError(
            f"{file.url} has changed: its {fault}. Find the version that the protocol means and put it at {path}."
        )
    write_json(folder / RECORD, {**recorded, file.name: file_sha256(partial)})
    partial.replace(path)
    return path


def _download(url: str, partial: Path, advance: Callable[[int], None]) -> None:
    start = partial.stat().st_size if partial.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        answer = urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code != NOTHING_LEFT or not start:
            raise
        # Killed between the last byte and the check of the digest.
        partial.unlink()
        return _download(url, partial, advance)
    with answer:
        resumed = answer.status == PARTIAL_CONTENT
        advance(start if resumed else 0)
        with partial.open("ab" if resumed else "wb") as stream:
            while chunk := answer.read(CHUNK_BYTES):
                stream.write(chunk)
                advance(len(chunk))
