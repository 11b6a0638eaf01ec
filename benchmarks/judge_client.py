"""Measure the judge client beside the limit of a server that takes a fixed time for every request, in one run.

Usage: `python benchmarks/judge_client.py [LATENCY_SECONDS]`. The server, a process of its own, answers any number of
requests at once; with 64 in flight its limit is 64 / latency. Prints requests per second, the limit, and the ratio.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import sys
import time
from multiprocessing.connection import Connection
from typing import Any

from PIL import Image

from segros_eval.evaluators import JudgeRequest
from segros_eval.judge import JudgeClient, JudgeSettings

IN_FLIGHT, ROUNDS = 64, 10
MODELS = {"object": "list", "data": [{"id": "fixed", "object": "model"}]}


def reply(said: str) -> dict[str, Any]:
    """Return a whole chat completion."""
    message = {"role": "assistant", "content": said}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return {"id": "1", "object": "chat.completion", "choices": [choice]}


def serve(latency: float, pipe: Connection) -> None:
    """Answer HTTP requests, each after `latency` seconds; the port goes through `pipe`."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            length = 0
            while (header := await reader.readline()).strip():
                name, _, value = header.partition(b":")
                length = int(value) if name.lower() == b"content-length" else length
            body = await reader.readexactly(length)
            is_chat = line.startswith(b"POST")
            if is_chat and b"disk" not in body:
                await asyncio.sleep(latency)
            said = "5" if b"from 0 to 10" in body else "yes"
            content = json.dumps(reply(said) if is_chat else MODELS).encode()
            head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
            writer.write(head.encode() + content)
            await writer.drain()

    async def run() -> None:
        server = await asyncio.start_server(answer, "127.0.0.1", 0, backlog=1024)
        pipe.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(run())


def main(latency: float) -> None:
    """Print the rates and their ratio."""
    os.environ["no_proxy"] = "*"
    ours, theirs = multiprocessing.Pipe()
    server = multiprocessing.Process(target=serve, args=(latency, theirs), daemon=True)
    server.start()
    settings = JudgeSettings(max_in_flight=IN_FLIGHT)
    judge = JudgeClient(f"http://127.0.0.1:{ours.recv()}/v1", model="fixed", settings=settings)
    images = [Image.new("RGB", (512, 512), (number % 256, number // 256, 90)) for number in range(IN_FLIGHT * ROUNDS)]
    requests = [JudgeRequest(image, ("What is it?",), "benchmark-v1") for image in images]
    judge.ask([JudgeRequest(image, ("Warm up.",), "benchmark-v1") for image in images[:IN_FLIGHT]])
    began, busy = time.monotonic(), time.process_time()
    replies = judge.ask(requests)
    rate, limit = len(requests) / (time.monotonic() - began), IN_FLIGHT / latency
    each = 1000 * (time.process_time() - busy) / len(requests)
    assert all(reply.text == "yes" for reply in replies)
    judge.close()
    server.terminate()
    sys.stdout.write(
        f"client {rate:.1f} requests/s; server's limit {limit:.1f}; ratio {rate / limit:.3f}; {each:.1f} ms busy each\n"
    )


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 1.0)
