"""The judge client against a server of odd replies: what fails for a moment, disobeys, drifts or is kept."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from segros_eval.benchmarks.base import JudgeRequest
from segros_eval.benchmarks.compbench.rules import SCORE_SCHEMA
from segros_eval.judges import client as judge_module
from segros_eval.judges.client import JudgeClient, JudgeSettings
from segros_eval.judges.images import encoded
from segros_eval.pipeline.judges import Judges
from segros_train.errors import PrerequisiteError

FAST = JudgeSettings(max_in_flight=8, max_attempts=4, first_wait_seconds=0.01, longest_wait_seconds=0.02)
Answer = Callable[[dict[str, Any]], tuple[int, str | None]]


class Stub:
    """A server that answers canaries always alike, and everything else as it is told to."""

    def __init__(self, answer: Answer, *, models: tuple[str, ...] = ("tiny",), vllm: bool = True) -> None:
        self.answer, self.bodies = answer, list[dict[str, Any]]()
        self.canary = lambda text: "yes"
        stub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                if self.path == "/version" and vllm:
                    self.reply(200, {"version": "0.0"})
                elif self.path == "/v1/models":
                    self.reply(200, {"object": "list", "data": [{"id": name, "object": "model"} for name in models]})
                else:
                    self.reply(404, {})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                text = body["messages"][-1]["content"]
                text = text if isinstance(text, str) else text[-1]["text"]
                if "disk" in text:
                    status, said = 200, stub.canary(text)
                    said = "5" if "number" in text and said == "yes" else said
                else:
                    stub.bodies.append(body)
                    status, said = stub.answer(body)
                message = {"role": "assistant", "content": said}
                self.reply(
                    status, {"id": "1", "object": "chat.completion", "choices": [{"index": 0, "message": message}]}
                )

            def reply(self, status: int, value: dict[str, Any]) -> None:
                content = json.dumps(value).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *arguments: Any) -> None: ...

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"

    def __enter__(self) -> Stub:
        return self

    def __exit__(self, *arguments: object) -> None:
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("no_proxy", "*")
    yield


def say(text: str) -> Answer:
    return lambda body: (200, text)


def request(image: Any, text: str = "What is it?", **options: Any) -> JudgeRequest:
    return JudgeRequest(image, (text,), "test-v1", **options)


@pytest.fixture
def picture() -> Image.Image:
    return Image.new("RGB", (12, 8), (200, 30, 36))


def client(stub: Stub, **options: Any) -> JudgeClient:
    return JudgeClient(stub.url, model="tiny", settings=FAST, **options)


def test_the_image_stands_before_the_text_and_arrives_pixel_for_pixel(picture: Image.Image) -> None:
    with Stub(say("a thing")) as stub:
        judge = client(stub)
        assert [reply.text for reply in judge.ask([request(picture)])] == ["a thing"]
        judge.close()
    (body,) = stub.bodies
    first, second = body["messages"][0]["content"]
    assert second == {"type": "text", "text": "What is it?"}
    content = base64.b64decode(first["image_url"]["url"].partition(",")[2])
    assert Image.open(io.BytesIO(content)).tobytes() == picture.tobytes()
    assert body["temperature"] == 0 and body["seed"] == 0


def test_a_second_turn_carries_the_first_and_its_answer(picture: Image.Image) -> None:
    with Stub(say("fine")) as stub:
        judge = client(stub)
        judge.ask([JudgeRequest(picture, ("Describe.", "Judge."), "test-v1", answers=("A thing.",))])
        judge.close()
    assert [message["role"] for message in stub.bodies[0]["messages"]] == ["user", "assistant", "user"]
    assert stub.bodies[0]["messages"][1]["content"] == "A thing."


def test_what_fails_for_a_moment_is_sent_again(picture: Image.Image) -> None:
    statuses = iter([503, 429, 200])

    def answer(body: dict[str, Any]) -> tuple[int, str]:
        return next(statuses), "at last"

    with Stub(answer) as stub:
        judge = client(stub)
        assert judge.ask([request(picture)])[0].text == "at last"
        judge.close()
    assert len(stub.bodies) == 3


def test_what_fails_for_good_has_no_text_and_says_why(picture: Image.Image) -> None:
    with Stub(lambda body: (500, "")) as stub:
        judge = client(stub)
        (reply,) = judge.ask([request(picture)])
        judge.close()
    assert reply.text is None and "4 attempts failed" in reply.reason and "500" in reply.reason
    assert len(stub.bodies) == FAST.max_attempts


def test_a_request_that_the_server_refuses_is_sent_once(picture: Image.Image) -> None:
    with Stub(lambda body: (400, "")) as stub:
        judge = client(stub)
        (reply,) = judge.ask([request(picture)])
        judge.close()
    assert reply.text is None and "400" in reply.reason
    assert len(stub.bodies) == 1


@pytest.mark.parametrize("status", (401, 404))
def test_a_server_that_refuses_this_client_stops_the_run(status: int, picture: Image.Image) -> None:
    with Stub(lambda body: (status, "")) as stub:
        judge = client(stub)
        with pytest.raises(PrerequisiteError, match=str(status)):
            judge.ask([request(picture)])
        judge.close()


@pytest.mark.parametrize(
    ("said", "options", "fault"),
    [
        ("Yes.", {"choices": ("yes", "no")}, "none of yes, no"),
        ("85", {"schema": SCORE_SCHEMA}, "85 is no object"),
        ("{", {"schema": SCORE_SCHEMA}, "no JSON"),
        ('{"score": 850, "explanation": ""}', {"schema": SCORE_SCHEMA}, "not within 0 to 100"),
        ('{"score": true, "explanation": ""}', {"schema": SCORE_SCHEMA}, "True is no integer"),
        ('{"score": 85}', {"schema": SCORE_SCHEMA}, "lacks explanation"),
    ],
)
def test_a_reply_that_disobeys_is_no_reply_and_is_not_kept(
    said: str, options: dict[str, Any], fault: str, picture: Image.Image, tmp_path: Path
) -> None:
    with Stub(say(said)) as stub:
        judge = client(stub, cache=tmp_path / "kept.jsonl")
        (reply,) = judge.ask([request(picture, **options)])
        judge.close()
    assert reply.text is None and fault in reply.reason
    assert not (tmp_path / "kept.jsonl").exists()


def test_demands_are_sent_in_the_form_that_the_server_knows(picture: Image.Image) -> None:
    for vllm in (True, False):
        with Stub(say("yes"), vllm=vllm) as stub:
            judge = client(stub)
            judge.ask([request(picture, choices=("yes", "no"))])
            judge.close()
        assert stub.bodies[0].get("structured_outputs") == ({"choice": ["yes", "no"]} if vllm else None)


def test_a_kept_reply_is_not_asked_for_again_by_a_later_run(picture: Image.Image, tmp_path: Path) -> None:
    cache = tmp_path / "kept.jsonl"
    with Stub(say("once")) as stub:
        for _ in range(2):
            judge = client(stub, cache=cache)
            assert judge.ask([request(picture)])[0].text == "once"
            judge.close()
        assert judge.record["num_kept"] == 1 and judge.record["num_asked"] == 0
    assert len(stub.bodies) == 1


@pytest.mark.parametrize("changed", ("image", "text", "length", "revision"))
def test_all_that_determines_a_reply_is_part_of_its_address(changed: str, picture: Image.Image, tmp_path: Path) -> None:
    cache = tmp_path / "kept.jsonl"
    other = {
        "image": request(Image.new("RGB", (12, 8))),
        "text": request(picture, "What else?"),
        "length": request(picture, max_tokens=7),
        "revision": request(picture),
    }[changed]
    with Stub(say("new")) as stub:
        for asked, revision in ((request(picture), ""), (other, "b" if changed == "revision" else "")):
            judge = client(stub, cache=cache, revision=revision)
            judge.ask([asked])
            judge.close()
    assert len(stub.bodies) == 2


def test_equal_requests_in_one_call_are_asked_once(picture: Image.Image) -> None:
    with Stub(say("one")) as stub:
        judge = client(stub)
        replies = judge.ask([request(picture), request(picture.copy()), request(picture)])
        judge.close()
    assert [reply.text for reply in replies] == ["one"] * 3
    assert len(stub.bodies) == 1


def test_the_first_question_about_an_image_is_answered_before_the_rest_are_asked(picture: Image.Image) -> None:
    open_now, seen = [], []
    lock = threading.Lock()

    def answer(body: dict[str, Any]) -> tuple[int, str]:
        with lock:
            open_now.append(1)
            seen.append((len(seen), len(open_now)))
        threading.Event().wait(0.05)
        with lock:
            open_now.pop()
        return 200, "so"

    with Stub(answer) as stub:
        judge = client(stub)
        judge.ask([request(picture, f"Question {number}?") for number in range(5)])
        judge.close()
    assert seen[0][1] == 1 and seen[1][1] == 1, "the second waits for the first"
    assert max(number for _, number in seen) > 1, "the rest go together"


def sent(stub: Stub) -> list[bytes]:
    uris = (body["messages"][0]["content"][0]["image_url"]["url"] for body in stub.bodies)
    return [base64.b64decode(uri.partition(",")[2]) for uri in uris]


def test_the_bytes_of_a_plain_png_are_sent_as_they_are_and_those_of_another_upright(
    picture: Image.Image, tmp_path: Path
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(tmp_path / "plain.png")
    picture.save(tmp_path / "turned.png", exif=exif)
    with Stub(say("seen")) as stub:
        judge = client(stub)
        judge.ask([request(tmp_path / "plain.png")])
        judge.ask([request(tmp_path / "turned.png")])
        judge.close()
    plain, turned = sent(stub)
    assert plain == (tmp_path / "plain.png").read_bytes()
    assert Image.open(io.BytesIO(turned)).size == (8, 12)


def test_a_picture_is_made_ready_once_for_all_questions_about_it(
    picture: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_made = []
    monkeypatch.setattr(judge_module, "encoded", lambda source: num_made.append(1) or encoded(source))
    with Stub(say("so")) as stub:
        judge = client(stub)
        judge.ask([request(picture, f"Question {number}?") for number in range(5)])
        judge.close()
    assert len(num_made) == 1 and len(stub.bodies) == 5


def test_the_next_picture_is_made_ready_while_one_is_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = [Image.new("RGB", (8, 8), (shade, 0, 0)) for shade in range(3)]
    made: list[Any] = []
    second = threading.Event()

    def told(source: Any) -> Any:
        made.append(source)
        if len(made) == 2:
            second.set()
        return encoded(source)

    monkeypatch.setattr(judge_module, "encoded", told)
    with Stub(lambda body: (200, "ahead" if second.wait(20) else "late")) as stub:
        judge = JudgeClient(stub.url, model="tiny", settings=replace(FAST, max_in_flight=1))
        replies = judge.ask([request(one) for one in pictures])
        judge.close()
    assert [reply.text for reply in replies] == ["ahead"] * 3


def test_a_judge_that_changes_between_start_and_end_is_an_error() -> None:
    with Stub(say("")) as stub:
        judge = client(stub)
        stub.canary = lambda text: "no" if "red" in text else "yes"
        with pytest.raises(PrerequisiteError, match="drifted"):
            judge.close()


def test_a_judge_of_another_model_is_refused_and_names_what_it_serves() -> None:
    with Stub(say(""), models=("another",)) as stub, pytest.raises(PrerequisiteError, match="serves another"):
        client(stub)


def test_an_endpoint_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SEGROS_HOME", str(tmp_path))
    monkeypatch.setenv("SEGROS_JUDGE", "http://127.0.0.1:9/v1")
    with pytest.raises(PrerequisiteError, match="127.0.0.1:9"):
        Judges().open("tiny")


def test_an_image_that_cannot_be_read_is_no_request(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with Stub(say("seen")) as stub:
        judge = client(stub)
        (reply,) = judge.ask([request(tmp_path / "broken.png")])
        judge.close()
    assert reply.text is None and "broken.png" in reply.reason
    assert stub.bodies == []
