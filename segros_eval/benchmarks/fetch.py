"""Official files of benchmarks: fetched once, checked by digest, kept below `$SEGROS_HOME/data`.

A file is pinned by the strongest digest that is known of it: its sha256, the beginning of it (which the name of a
published checkpoint may hold), or git's name of its content. Whatever is known, the whole sha256 of the first copy is
recorded beside it, fetched or found there, and every later copy must be the same. Where its authors publish no whole
digest, the first copy itself is trusted.
"""

from __future__ import annotations

import hashlib
import json
import logging
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from segros_train.errors import PrerequisiteError
from segros_train.files import file_sha256, segros_home, write_json

__all__ = [
    "BenchmarkData",
    "HubFiles",
    "PinnedFile",
    "Sheet",
    "fetch_file",
    "fetch_hub",
    "file_fault",
    "held_to_first_copy",
    "home_of",
    "hub_commit",
]

HUB_RECORD = "hub.json"

CHUNK_BYTES = 1 << 20
TIMEOUT_SECONDS = 30
PARTIAL_CONTENT = 206
NOTHING_LEFT = 416
RECORD = "sha256.json"
"""File of the digests of first copies."""

logger = logging.getLogger(__name__)


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
class HubFiles:
    """Files of a data set on the Hugging Face hub.

    Attributes:
        repo: The data set's repository.
        patterns: Which of its files.
        revision: Commit; None takes the newest when first fetched, and that one from then on.
    """

    repo: str
    patterns: tuple[str, ...]
    revision: str | None = None


@dataclass(frozen=True)
class Sheet:
    """A table that VLMEvalKit publishes, which may stand in place of the hub's files.

    Attributes:
        name: Name in the benchmark's folder.
        md5: Digest as VLMEvalKit states it.
    """

    name: str
    md5: str


@dataclass(frozen=True)
class BenchmarkData:
    """The official files of a benchmark; a value of `tasks/data.py`.

    Attributes:
        name: Name on the command line, and of the folder.
        files: What it consists of.
        licence: Licence of the files.
        hub: Where the hub has them, for benchmarks of questions.
        sheet: VLMEvalKit's table of them.
    """

    name: str
    files: tuple[PinnedFile, ...] = ()
    licence: str = ""
    hub: HubFiles | None = None
    sheet: Sheet | None = None

    @property
    def summary(self) -> str:
        """What it consists of, in a line."""
        names = [*([self.hub.repo] if self.hub else []), *([self.sheet.name] if self.sheet else [])]
        return ", ".join(file.name for file in self.files) or " or ".join(names)


def fetch_hub(
    files: HubFiles,
    folder: Path,
    *,
    resolve: Callable[[str], str] | None = None,
    download: Callable[[str, str, tuple[str, ...], Path], None] | None = None,
) -> str:
    """Fetch files of a data set on the hub and return their commit, which is kept beside them and stays.

    Args:
        files: What to fetch.
        folder: Where it goes.
        resolve: Tells the newest commit of a repository; by default the hub.
        download: Brings the files of a repository at a commit; by default the hub's client, which resumes.

    Raises:
        PrerequisiteError: If the hub cannot be reached or has no such files.
    """
    record = folder / HUB_RECORD
    commit = files.revision or hub_commit(folder)
    try:
        commit = commit or (resolve or _newest_commit)(files.repo)
        (download or _download_snapshot)(files.repo, commit, files.patterns, folder)
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).rstrip(".")
        raise PrerequisiteError(
            f"Cannot fetch {', '.join(files.patterns)} of the data set {files.repo}: {reason}",
            f"Without a network, put the hub's parquet files, VLMEvalKit's TSV or the authors' archives into {folder}.",
        ) from error
    write_json(record, {"repo": files.repo, "revision": commit})
    return commit


def hub_commit(folder: Path) -> str | None:
    """Return the commit of the hub's files in a folder; None where none were fetched."""
    try:
        return json.loads((folder / HUB_RECORD).read_text(encoding="utf-8"))["revision"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _newest_commit(repo: str) -> str:
    from huggingface_hub import HfApi

    commit = HfApi().dataset_info(repo).sha
    if commit is None:
        raise ValueError(f"the hub tells no commit of {repo}")
    return commit


def _download_snapshot(repo: str, commit: str, patterns: tuple[str, ...], folder: Path) -> None:
    from huggingface_hub import snapshot_download

    snapshot_download(repo, repo_type="dataset", revision=commit, allow_patterns=list(patterns), local_dir=folder)


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


def held_to_first_copy(path: Path, digest: str) -> str:
    """Return the digest of a file, which must be that of its first copy; what is seen first is recorded.

    Args:
        path: The file.
        digest: Its sha256, whole.

    Raises:
        PrerequisiteError: If it is another one.
    """
    recorded = _recorded(path.parent)
    first = recorded.get(path.name)
    if first not in (None, digest):
        raise PrerequisiteError(
            f"{path} has changed: its sha256 is {digest}, that of the first copy was {first}",
            f"Fetch it again, or delete its line in {path.parent / RECORD} if it is the right one.",
        )
    if first is None:
        try:
            write_json(path.parent / RECORD, {**recorded, path.name: digest})
        except PrerequisiteError as error:
            logger.warning("The digest of %s is not recorded, so a changed file would not show: %s", path, error)
    return digest


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
            f"Cannot fetch {file.url}: {getattr(error, 'reason', error)}",
            f"Without a network, fetch it elsewhere and "
            f"put it at {path}; `segros data check` tells whether it is right.",
        ) from error
    except OSError as error:
        raise PrerequisiteError(
            f"Cannot write to {folder}: {error.strerror}",
            "Set $SEGROS_HOME to another.",
        ) from error
    recorded = _recorded(folder)
    fault = _content_fault(file, partial, recorded.get(file.name, ""))
    if fault is not None:
        partial.unlink()
        raise PrerequisiteError(
            f"{file.url} has changed: its {fault}",
            f"Find the version that the protocol means and put it at {path}.",
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
