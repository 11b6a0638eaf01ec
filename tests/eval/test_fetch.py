"""Official files are fetched whole, resumed where they stopped, and trusted by their digest alone."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from segros_eval.benchmarks.fetch import PinnedFile, fetch_file, file_fault
from segros_eval.cli.app import app
from segros_train.errors import PrerequisiteError

CONTENT = bytes(range(256)) * 400
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server:
    """Serves CONTENT, from where it is asked to, and remembers from where that was."""

    def __init__(self, *, ranges: bool = True) -> None:
        starts = self.starts = list[int]()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                start = int(self.headers.get("Range", "bytes=0-")[6:-1]) if ranges else 0
                starts.append(start)
                if start >= len(CONTENT):
                    self.send_error(416)
                    return
                self.send_response(206 if start else 200)
                self.send_header("Content-Length", str(len(CONTENT) - start))
                self.end_headers()
                self.wfile.write(CONTENT[start:])

            def log_message(self, *arguments: Any) -> None: ...

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_port}/file"

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *arguments: object) -> None:
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("no_proxy", "*")
    yield


def fetch(server: Server, folder: Path, sha256: str = SHA256) -> int:
    counts: list[int] = []
    fetch_file(PinnedFile("file", server.url, sha256), folder, advance=counts.append)
    return sum(counts)


def test_a_file_arrives_whole_and_is_right(tmp_path: Path) -> None:
    with Server() as server:
        assert fetch(server, tmp_path) == len(CONTENT)
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert file_fault(PinnedFile("file", "", SHA256), tmp_path) is None


def test_a_stopped_transfer_goes_on_where_it_was(tmp_path: Path) -> None:
    (tmp_path / ".file.part").write_bytes(CONTENT[:1000])
    with Server() as server:
        assert fetch(server, tmp_path) == len(CONTENT)
        assert server.starts == [1000]
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_transfer_that_was_killed_after_its_last_byte_is_made_again(tmp_path: Path) -> None:
    (tmp_path / ".file.part").write_bytes(CONTENT)
    with Server() as server:
        assert fetch(server, tmp_path) == len(CONTENT)
        assert server.starts == [len(CONTENT), 0]
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_server_that_cannot_resume_sends_it_all_again(tmp_path: Path) -> None:
    (tmp_path / ".file.part").write_bytes(b"x" * 1000)
    with Server(ranges=False) as server:
        fetch(server, tmp_path)
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_file_of_another_digest_is_refused_and_not_kept(tmp_path: Path) -> None:
    with Server() as server, pytest.raises(PrerequisiteError, match="has changed"):
        fetch(server, tmp_path, "0" * 64)
    assert list(tmp_path.iterdir()) == []


def test_without_a_network_the_message_says_where_the_file_belongs(tmp_path: Path) -> None:
    with Server() as server:
        url = server.url
    with pytest.raises(PrerequisiteError, match="Cannot fetch") as caught:
        fetch_file(PinnedFile("file", url, SHA256), tmp_path, advance=lambda count: None)
    assert url in str(caught.value) and str(tmp_path / "file") in str(caught.value)


def test_checking_tells_missing_files_and_ends_with_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGROS_HOME", str(tmp_path))
    done = CliRunner().invoke(app, ["data", "check", "geneval"])
    assert done.exit_code == 1 and "missing" in done.stdout and "evaluation_metadata.jsonl" in done.stdout


def test_a_file_is_held_to_the_strongest_digest_that_is_known(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"hello\n")
    blob = "ce013625030ba8dba906f756967f9e9ca394464a"
    sha256 = hashlib.sha256(b"hello\n").hexdigest()
    assert file_fault(PinnedFile("file", "", git_blob=blob), tmp_path) is None
    assert file_fault(PinnedFile("file", "", sha256=sha256[:8]), tmp_path) is None
    assert "git's name" in str(file_fault(PinnedFile("file", "", git_blob=blob[::-1]), tmp_path))
    assert "expected 00000000" in str(file_fault(PinnedFile("file", "", sha256="00000000"), tmp_path))


def test_a_file_without_a_known_digest_is_recorded_at_first_use_and_checked_ever_after(tmp_path: Path) -> None:
    with Server() as server:
        assert fetch(server, tmp_path, sha256="") == len(CONTENT)
    file = PinnedFile("file", "")
    assert file_fault(file, tmp_path) is None
    (tmp_path / "file").write_bytes(b"another version")
    assert "the first copy's was" in str(file_fault(file, tmp_path))
