"""A small server in the place of vLLM, started as vLLM is: as the Python of its environment."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from segros_eval.judges.vllm_server import VLLM_VERSION

SERVER = '''#!{python}
"""Serves what a judge's client asks for, with a worker of its own in its group; `stubborn` ignores a request to end."""
import json, signal, subprocess, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

if {stubborn}:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
worker = subprocess.Popen([sys.executable, "-c", "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\\n"
                           "while True: signal.pause()"])
with Path({starts!r}).open("a") as stream:
    print(json.dumps([worker.pid, sys.argv[1:]]), file=stream)
port = int(sys.argv[sys.argv.index("--port") + 1])
model = sys.argv[sys.argv.index("--served-model-name") + 1]

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.reply({{"version": "0.0", "object": "list", "data": [{{"id": model, "object": "model"}}]}})

    def do_POST(self):
        text = self.rfile.read(int(self.headers["Content-Length"])).decode()
        message = {{"role": "assistant", "content": "5" if "number" in text else "yes"}}
        self.reply({{"id": "1", "object": "chat.completion", "choices": [{{"index": 0, "message": message}}]}})

    def reply(self, value):
        content = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments): ...

ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
'''


@dataclass(frozen=True)
class StubJudge:
    """Where the stub stands in the place of vLLM, and what it has told."""

    home: Path

    def install(self, *, stubborn: bool = False) -> None:
        """Put the stub where the environment of vLLM would lie below `home`."""
        folder = self.home / "judge" / "environment"
        program = folder / "bin" / "python"
        program.parent.mkdir(parents=True)
        text = SERVER.format(python=sys.executable, stubborn=stubborn, starts=str(self.home / "starts"))
        program.write_text(text, encoding="utf-8")
        program.chmod(0o755)
        (folder / "segros.json").write_text(json.dumps({"kind": "cpu", "vllm": VLLM_VERSION}), encoding="utf-8")

    def starts(self) -> list[tuple[int, list[str]]]:
        """Return the worker and the arguments of every start."""
        path = self.home / "starts"
        return [tuple(json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []
