"""The judges of one run: an endpoint that the user names, or a server of ours for all evaluations of the run.

A server is started at first need and kept for every further evaluation by the same judge; another judge takes its
place, since one device seldom holds two. What this process has left on the device is given back before a start.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from segros_eval.judges.client import ENDPOINT, ENDPOINT_KEY, JudgeClient
from segros_train.errors import PrerequisiteError, release_memory
from segros_train.files import content_key, segros_home

if TYPE_CHECKING:
    from segros_eval.judges.vllm_server import JudgeServer

__all__ = ["Judges"]


class Judges:
    """Connects to judges; as a context manager it ends a server of ours at its exit."""

    def __init__(self, *, given: Mapping[str, str] | None = None, log: Path | None = None) -> None:
        """Plan judges; nothing is started yet.

        Args:
            given: Flags of the user for a server of ours, by name.
            log: Where a server of ours writes its log; None for a place below `$SEGROS_HOME`.
        """
        self._given, self._log = dict(given or {}), log
        self._server: JudgeServer | None = None

    def __enter__(self) -> Judges:
        return self

    def __exit__(self, *arguments: object) -> None:
        self.close()

    def open(self, model: str, *, revision: str = "") -> JudgeClient:
        """Connect to the endpoint that the user names, else to a server of ours, which is started if need be.

        Args:
            model: The model, as the hub names it, or a folder.
            revision: Its revision; empty for what is there.

        Raises:
            PrerequisiteError: If there is neither, or it does not answer.
        """
        from segros_eval.judges.flags import altering

        url = os.environ.get(ENDPOINT)
        altered = () if url else altering(self._given)  # Replies under other flags are kept apart.
        cache = segros_home() / "judge" / "replies" / f"{content_key([model, revision, *altered])[:16]}.jsonl"
        if url:
            key = os.environ.get(ENDPOINT_KEY) or "none"
            return JudgeClient(url, model=model, revision=revision, cache=cache, key=key)
        server = self._serving(model, revision)

        def revive() -> str:
            if self._server is not server:
                raise PrerequisiteError(f"The judge {model} is asked after it was let go of.")
            return server.start()

        return JudgeClient(
            revive(), model=model, revision=revision, cache=cache, revive=revive, about={"server": server.record}
        )

    def _serving(self, model: str, revision: str) -> JudgeServer:
        from segros_eval.judges.vllm_server import JudgeServer

        if self._server is not None and (self._server.model, self._server.revision) == (model, revision):
            return self._server
        self.close()
        release_memory()
        self._server = JudgeServer(model, revision=revision, given=self._given, log=self._log)
        return self._server

    def close(self) -> None:
        """End the server, if there is one of ours; again does nothing."""
        server, self._server = self._server, None
        if server is not None:
            server.stop()
