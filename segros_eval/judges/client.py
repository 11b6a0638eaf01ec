"""A vision language model as a judge, over the OpenAI-compatible protocol.

Requests go out image by image: the first question about an image alone, the rest together once it is answered, so that
a server that keeps prefixes encodes the image once; the image stands before the text. Pictures are made ready ahead of
their turn, so that a server does not wait for them. What failed for a moment is sent again, later each time. A reply is
kept under all that determines it, and a kept reply is not asked for again, so a stopped run goes on where it was.
Whether a reply obeys what was demanded is checked, because servers are known to ignore demands they do not know.

A few fixed questions about painted pictures (canaries) are asked at the start and at the end of every run; a judge
that answers them differently has changed under way.

Source: vLLM 0.32.0, OpenAI-compatible server (structured outputs, prefix caching).
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

from segros_eval.benchmarks.base import JudgeReply, JudgeRequest
from segros_eval.benchmarks.folders import GridCell
from segros_eval.judges.images import CANARIES, Picture, canary_picture, encoded
from segros_eval.judges.replies import obeys, reply_text
from segros_train.errors import PrerequisiteError
from segros_train.files import append_jsonl, content_key, read_jsonl

__all__ = ["ENDPOINT", "ENDPOINT_KEY", "JudgeClient", "JudgeSettings"]

ENDPOINT = "SEGROS_JUDGE"
"""Environment variable that names an endpoint, e.g. `http://host:8000/v1`."""
ENDPOINT_KEY = "SEGROS_JUDGE_KEY"
SEED = 0
ENCODERS = min(8, os.cpu_count() or 1)
"""Pictures that are made ready at a time."""
TRANSIENT = (408, 409, 425, 429, 500, 502, 503, 504)
ABOUT_ACCESS = (401, 403, 404)

Returned = TypeVar("Returned")


@dataclasses.dataclass(frozen=True)
class JudgeSettings:
    """How requests are sent; nothing here changes a reply.

    Attributes:
        max_in_flight: Requests at a time, 64 to 256 for a server of one GPU.
        max_attempts: Times that one request is sent.
        first_wait_seconds: Wait before the second attempt; doubled each time.
        longest_wait_seconds: Longest wait.
        timeout_seconds: Longest time for a reply.
    """

    max_in_flight: int = 128
    max_attempts: int = 6
    first_wait_seconds: float = 0.5
    longest_wait_seconds: float = 30.0
    timeout_seconds: float = 300.0


class JudgeClient:
    """Ask a judge over HTTP."""

    def __init__(
        self,
        url: str,
        *,
        model: str,
        revision: str = "",
        cache: Path | None = None,
        settings: JudgeSettings = JudgeSettings(),
        key: str = "none",
        revive: Callable[[], str] | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        """Connect to a judge and ask it the canaries.

        Args:
            url: Base of the API, ending in `/v1`.
            model: Name under which it serves the model.
            revision: The model's revision, part of what a kept reply stands under.
            cache: JSON lines file of kept replies; None keeps none.
            settings: How to send.
            key: The API's key.
            revive: Called when the server cannot be reached; starts it again and returns its base.
            about: More for the record, e.g. how a server was started.

        Raises:
            PrerequisiteError: If it cannot be reached, or does not serve the model.
        """
        self.url, self.model, self.revision, self.settings = url.rstrip("/"), model, revision, settings
        self._key, self._revive, self._cache = key, revive, cache
        self._kept = _kept(cache)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="judge", daemon=True)
        self._thread.start()
        self._revived = asyncio.Lock()
        self._client = self._connected()
        self._closed = False
        with ExitStack() as undo:
            undo.callback(self._stop)
            self.engine = self._engine()
            self._check_model()
            self._canaries = self._ask_canaries()
            undo.pop_all()
        self.record: dict[str, Any] = {
            "model": model,
            "revision": revision or None,
            "engine": self.engine,
            "canaries": content_key(self._canaries)[:16],
            "num_asked": 0,
            "num_kept": 0,
            **(about or {}),
        }

    def ask(self, requests: Sequence[JudgeRequest]) -> list[JudgeReply]:
        """Return a reply per request, in order; one that could not be had or does not obey has no text and a reason.

        Raises:
            PrerequisiteError: If the judge refuses this client, or is gone for good.
        """
        return self._run(self._ask(requests))

    def close(self) -> None:
        """Ask the canaries once more, then let go of the judge.

        Raises:
            PrerequisiteError: If it answers them differently than at the start.
        """
        if self._closed:
            return
        try:
            last = self._ask_canaries()
        finally:
            self._closed = True
            self._stop()
        if last != self._canaries:
            changed = [index for index, pair in enumerate(zip(self._canaries, last, strict=True)) if pair[0] != pair[1]]
            raise PrerequisiteError(
                f"The judge {self.model} has drifted: it answers {len(changed)} of {len(last)} fixed questions "
                f"otherwise than when it was opened, e.g. {self._canaries[changed[0]]!r} then {last[changed[0]]!r}",
                f"Its scores are not of one judge: remove its kept replies ({self._cache}) and score again.",
            )

    def _stop(self) -> None:
        try:
            self._run(self._client.close())
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(timeout=5)

    def _run(self, work: Coroutine[Any, Any, Returned]) -> Returned:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _connected(self) -> Any:
        from openai import AsyncOpenAI

        return AsyncOpenAI(base_url=self.url, api_key=self._key, max_retries=0, timeout=self.settings.timeout_seconds)

    def _engine(self) -> str:
        """Return the engine's name and version, as far as it tells."""
        try:
            with urllib.request.urlopen(self.url.removesuffix("/v1") + "/version", timeout=10) as answer:
                return f"vllm {json.load(answer)['version']}"
        except (OSError, ValueError, KeyError, TypeError):
            return "unknown"

    def _check_model(self) -> None:
        from openai import APIConnectionError, APIStatusError

        async def served() -> list[str]:
            return [model.id async for model in self._client.models.list()]

        try:
            names = self._run(served())
        except APIConnectionError as error:
            raise PrerequisiteError(
                f"The judge at {self.url} cannot be reached: {error}",
                f"Start it, or name another with ${ENDPOINT}.",
            ) from error
        except APIStatusError as error:
            raise PrerequisiteError(
                f"The judge at {self.url} refuses: {error.message}. ${ENDPOINT_KEY} holds the key that is sent."
            ) from error
        if self.model not in names:
            raise PrerequisiteError(
                f"The judge at {self.url} serves {', '.join(names) or 'nothing'}, and {self.model} is asked for",
                "Serve it there, or name what is there with --set judge_model=..., which is a protocol of its own.",
            )

    def _ask_canaries(self) -> list[str]:
        """Ask the fixed questions one after the other, past all kept replies."""

        async def asked() -> list[JudgeReply]:
            return [
                await self._sent(canary_picture(number), request, keep=False) for number, request in enumerate(CANARIES)
            ]

        replies = self._run(asked())
        lacking = next((reply for reply in replies if reply.text is None), None)
        if lacking is not None:
            raise PrerequisiteError(
                f"The judge {self.model} at {self.url} does not answer a fixed question: {lacking.reason}"
            )
        return [str(reply.text) for reply in replies]

    async def _ask(self, requests: Sequence[JudgeRequest]) -> list[JudgeReply]:
        """Send requests image by image, so many at a time as the settings allow."""
        groups = _by_image(requests)
        to_encode, to_judge = iter(groups), iter(groups)
        ready: asyncio.Queue[tuple[list[int], Picture | str]] = asyncio.Queue(self.settings.max_in_flight)
        slots = asyncio.Semaphore(self.settings.max_in_flight)
        replies: dict[int, JudgeReply] = {}
        under_way: dict[str, asyncio.Task[JudgeReply]] = {}

        async def new(picture: Picture, request: JudgeRequest) -> JudgeReply:
            async with slots:
                self.record["num_asked"] += 1
                return await self._sent(picture, request)

        async def one(picture: Picture, place: int) -> None:
            address = self._address(picture, requests[place])
            if address in self._kept:
                self.record["num_kept"] += 1
                replies[place] = JudgeReply(self._kept[address])
                return
            if address not in under_way:
                under_way[address] = asyncio.create_task(new(picture, requests[place]))
            replies[place] = await under_way[address]

        async def make_ready() -> None:
            for places in to_encode:
                await ready.put((places, await asyncio.to_thread(encoded, requests[places[0]].image)))

        async def work() -> None:
            for _ in to_judge:
                places, picture = await ready.get()
                if isinstance(picture, str):
                    replies.update({place: JudgeReply(None, picture) for place in places})
                    continue
                await one(picture, places[0])
                await asyncio.gather(*(one(picture, place) for place in places[1:]))

        try:
            async with asyncio.TaskGroup() as workers:
                for _ in range(ENCODERS):
                    workers.create_task(make_ready())
                for _ in range(min(self.settings.max_in_flight, len(groups))):
                    workers.create_task(work())
        except* PrerequisiteError as errors:
            raise errors.exceptions[0] from None
        return [replies[place] for place in range(len(requests))]

    async def _sent(self, picture: Picture, request: JudgeRequest, *, keep: bool = True) -> JudgeReply:
        """Send a request until it is answered or fails for good, and keep a reply that obeys."""
        from openai import APIConnectionError, APIStatusError

        reason = ""
        for attempt in range(self.settings.max_attempts):
            if attempt:
                wait = self.settings.first_wait_seconds * 2 ** (attempt - 1)
                await asyncio.sleep(min(wait, self.settings.longest_wait_seconds))
            client = self._client
            try:
                # A plain dictionary: building the library's own objects would cost more than all the rest.
                answer = await client.post("/chat/completions", body=self._body(picture, request), cast_to=object)
            except APIConnectionError as error:
                reason = f"no connection: {error}"
                await self._revive_after(client)
                continue
            except APIStatusError as error:
                reason = f"HTTP {error.status_code}: {error.message}"
                if error.status_code in TRANSIENT:
                    continue
                if error.status_code in ABOUT_ACCESS:
                    raise PrerequisiteError(f"The judge {self.model} at {self.url} refuses: {reason}.") from error
                return JudgeReply(None, reason)
            text = reply_text(answer)
            if text is None:
                return JudgeReply(None, "the reply holds no text")
            if fault := obeys(text, request):
                return JudgeReply(None, fault)
            if keep:
                self._keep(self._address(picture, request), text)
            return JudgeReply(text)
        return JudgeReply(None, f"{self.settings.max_attempts} attempts failed, the last with {reason}")

    async def _revive_after(self, client: Any) -> None:
        """Start a server of ours again that is gone; of many requests that notice it, the first does."""
        if self._revive is None:
            return
        async with self._revived:
            if self._client is client:
                self.url = (await asyncio.to_thread(self._revive)).rstrip("/")
                self._client = self._connected()

    def _body(self, picture: Picture, request: JudgeRequest) -> dict[str, Any]:
        first = [{"type": "image_url", "image_url": {"url": picture.uri}}, {"type": "text", "text": request.turns[0]}]
        messages: list[dict[str, Any]] = [{"role": "user", "content": first}]
        for said, text in zip(request.answers, request.turns[1:], strict=True):
            messages += [{"role": "assistant", "content": said}, {"role": "user", "content": text}]
        body: dict[str, Any] = {"model": self.model, "messages": messages, "max_tokens": request.max_tokens}
        body |= {"temperature": 0.0, "seed": SEED}
        if request.schema is not None:
            demand = {"name": "reply", "schema": json.loads(request.schema)}
            body["response_format"] = {"type": "json_schema", "json_schema": demand}
        if request.choices and self.engine.startswith("vllm"):
            body["structured_outputs"] = {"choice": list(request.choices)}
        return body

    def _address(self, picture: Picture, request: JudgeRequest) -> str:
        said = {**dataclasses.asdict(dataclasses.replace(request, image=None)), "image": picture.digest}
        return content_key({**said, "model": self.model, "revision": self.revision, "seed": SEED})

    def _keep(self, address: str, text: str) -> None:
        self._kept[address] = text
        if self._cache is not None:
            append_jsonl(self._cache, {"key": address, "text": text})


def _by_image(requests: Sequence[JudgeRequest]) -> list[list[int]]:
    """Return the places of the requests about each image, images in the order in which they come first."""
    found: dict[Any, list[int]] = {}
    for place, request in enumerate(requests):
        named = isinstance(request.image, (Path, GridCell))
        found.setdefault(request.image if named else id(request.image), []).append(place)
    return list(found.values())


def _kept(cache: Path | None) -> dict[str, str]:
    if cache is None:
        return {}
    records = (record for record in read_jsonl(cache) if isinstance(record, dict) and {"key", "text"} <= record.keys())
    return {record["key"]: record["text"] for record in records}
