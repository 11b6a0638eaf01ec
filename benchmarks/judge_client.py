"""Measure the judge client beside the limit of a server that takes a fixed time for every request, in one run.

Usage: `python benchmarks/judge_client.py [LATENCY_SECONDS ...]`. The server, a process of its own, answers any number
of requests at once; with 64 in flight its limit is 64 / latency. What is sent is what `segros score compbench` sends:
PNG files of 512 px, a file a request, with the text of `srum-2025-11`, and as many. Prints requests per second, the
limit and the ratio at each latency, the processor time of the client, and the machine's load, without which a ratio
says little.

A 7B judge on vLLM with one data-centre GPU and 64 in flight is estimated to reply after about 2.5 s; no server has
been measured. A request of some 650 tokens, 324 of them the image, takes about 10 TFLOP, so that a GPU that
does 400 TFLOP/s reads 64 of them in 1.6 s; some 50 tokens of JSON at 15 to 20 ms a step come on top. 1 s stands for a
shorter reply or several GPUs, 4 s for a slower GPU; the 32B judge of the default protocol is slower still.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from segros_eval.benchmarks.base import JudgeRequest
from segros_eval.benchmarks.compbench.rules import srum_text
from segros_eval.judges.client import JudgeClient, JudgeSettings

IN_FLIGHT, NUM_REQUESTS = 64, 2400
"""T2I-CompBench asks once about each of 2,400 pictures, 300 prompts in each of eight categories."""
LATENCIES = (1.0, 2.5, 4.0)
MODELS = {"object": "list", "data": [{"id": "fixed", "object": "model"}]}


def reply(said: str) -> dict[str, Any]:
    """Return a whole chat completion."""
    message = {"role": "assistant", "content": said}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return {"id": "1", "object": "chat.completion", "choices": [choice]}


def serve(latency: float, pipe: Connection) -> None:
    """Answer HTTP requests, each `latency` seconds after it is read; the port goes through `pipe`."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            length = 0
            while (header := await reader.readline()).strip():
                name, _, value = header.partition(b":")
                length = int(value) if name.lower() == b"content-length" else length
            body = await reader.readexactly(length)
            is_chat = line.startswith(b"POST")
            # Canaries are the only requests for four tokens; quotes and spaces never occur in an encoded picture.
            if is_chat and b'"max_tokens":4,' not in body:
                await asyncio.sleep(latency)
            said = "5" if b"from 0 to 10?" in body else "yes"
            content = json.dumps(reply(said) if is_chat else MODELS).encode()
            head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
            writer.write(head.encode() + content)
            await writer.drain()

    async def run() -> None:
        server = await asyncio.start_server(answer, "127.0.0.1", 0, backlog=1024)
        pipe.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(run())


def write_images(folder: Path, number: int) -> list[Path]:
    """Write smooth pictures of 512 px, each of its own."""
    rng = np.random.default_rng(0)
    paths = [folder / f"{place:04d}.png" for place in range(number)]
    for path in paths:
        block = rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)
        picture = Image.fromarray(block).resize((512, 512), Image.Resampling.BICUBIC)
        picture.save(path, compress_level=1)
    return paths


def measure(latency: float, images: Sequence[Path]) -> str:
    """Return the rates and their ratio."""
    ours, theirs = multiprocessing.Pipe()
    server = multiprocessing.Process(target=serve, args=(latency, theirs), daemon=True)
    server.start()
    settings = JudgeSettings(max_in_flight=IN_FLIGHT)
    judge = JudgeClient(f"http://127.0.0.1:{ours.recv()}/v1", model="fixed", settings=settings)
    text = srum_text("a green bench and a blue bowl")
    requests = [JudgeRequest(image, (text,), "benchmark-v1") for image in images]
    judge.ask([JudgeRequest(image, ("Warm up.",), "benchmark-v1") for image in images[:IN_FLIGHT]])
    began, busy = time.monotonic(), time.process_time()
    replies = judge.ask(requests)
    seconds, busy = time.monotonic() - began, time.process_time() - busy
    assert all(reply.text == "yes" for reply in replies)
    judge.close()
    server.terminate()
    rate, limit = len(requests) / seconds, IN_FLIGHT / latency
    return (
        f"latency {latency:g} s: client {rate:.1f} requests/s; server's limit {limit:.1f}; ratio {rate / limit:.3f}; "
        f"{1000 * busy / len(requests):.1f} ms busy each; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores\n"
    )


def main(latencies: Sequence[float]) -> None:
    """Print a line for each latency."""
    os.environ["no_proxy"] = "*"
    with tempfile.TemporaryDirectory() as folder:
        images = write_images(Path(folder), NUM_REQUESTS)
        for latency in latencies:
            sys.stdout.write(measure(latency, images))
            sys.stdout.flush()


if __name__ == "__main__":
    main([float(latency) for latency in sys.argv[1:]] or LATENCIES)
