"""Files that survive a crash: atomic replacement, JSON lines with a torn tail, content hashes."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from segros_train.errors import PrerequisiteError

__all__ = [
    "append_jsonl",
    "atomic_write",
    "content_key",
    "data_folder",
    "file_sha256",
    "located",
    "read_jsonl",
    "segros_home",
    "write_json",
    "write_text",
]


def segros_home() -> Path:
    """Return the folder of fetched data (`data/`) and weights (`weights/`): `$SEGROS_HOME`, else `~/.cache/segros`."""
    return Path(os.environ.get("SEGROS_HOME") or Path.home() / ".cache" / "segros")


def located(source: str) -> str:
    """Return a source of training data with its folder spelled out: as named, else below `$SEGROS_HOME/data`."""
    kind, colon, place = source.partition(":")
    return source if not colon or kind == "hub" else f"{kind}:{data_folder(place)}"


def data_folder(name: str) -> Path:
    """Return the folder of a data set: as named where there is one, else below `$SEGROS_HOME/data`."""
    path = Path(name).expanduser()
    return path if path.is_absolute() or path.is_dir() else segros_home() / "data" / name


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Give a temporary neighbour of `path` to fill, then put it in place at once, as a context.

    Raises:
        PrerequisiteError: If the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    except OSError as error:
        raise PrerequisiteError(
            f"Cannot write {path}: {error.strerror}. Choose another folder with --out, or mend its rights."
        ) from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically; NaN and infinity are errors."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def append_jsonl(path: Path, value: Any) -> None:
    """Append one JSON line; a torn last line left by a crash is closed first."""
    line = json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as stream:
        if stream.seek(0, os.SEEK_END) > 0:
            stream.seek(-1, os.SEEK_END)
            if stream.read(1) != b"\n":
                stream.write(b"\n")
        stream.write(line.encode())


def read_jsonl(path: Path) -> Iterator[Any]:
    """Yield the values of a JSON lines file; a line torn by a crash is left out.

    Only a line that is followed by another whole line, or ends the file, may be torn: it is skipped because
    the append that follows a crash starts a fresh line.
    """
    if not path.exists():
        return
    with path.open(encoding="utf-8", errors="replace") as stream:
        for line in stream:
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                continue


def content_key(value: Any) -> str:
    """Return the sha256 of `value` as canonical JSON; dataclasses are given as plain values."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
