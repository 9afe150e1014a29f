"""Clients that load a server count what they see, and what goes wrong."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bench.__main__ import main
from bench.client import PICTURES, Load
from bench.load import Tally, _body, run
from tests.http_server import answering

CHUNKS: list[dict[str, Any]] = [
    {"choices": [{"delta": {"role": "assistant", "content": ""}}]},
    {"choices": [{"delta": {"reasoning": "a", "reasoning_content": "a"}}]},
    *({"choices": [{"delta": {"content": word}}]} for word in ("b", "c")),
    {"choices": [], "usage": {"completion_tokens": 3}},
]
ERROR = {"error": {"message": "the model failed"}}


class Server(BaseHTTPRequestHandler):
    """Answers the requests in the ways named by `script`, the last one forever."""

    script: list[str]
    seen: list[dict[str, Any]]

    def do_GET(self) -> None:
        metrics = b"process_resident_memory_bytes 2.5e+08\n"
        self._send(200, metrics if self.path == "/metrics" else b'{"data": [{"id": "some"}]}')

    def do_POST(self) -> None:
        self.seen.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
        way = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        if way == "full":
            return self._send(429, b"{}")
        if way == "broken":
            return self._send(500, b"oh")
        events = [*CHUNKS[:2], ERROR] if way == "error" else CHUNKS[:3] if way == "cut" else CHUNKS
        lines = "".join(f"data: {json.dumps(event)}\n\n" for event in events)
        return self._send(200, (lines + ("data: [DONE]\n\n" if way == "good" else "")).encode())

    def _send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.send_header("retry-after", "0")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def serving(*script: str) -> Iterator[str]:
    Server.script, Server.seen = list(script), []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    with answering(server):
        yield f"http://127.0.0.1:{server.server_address[1]}"


def test_what_was_seen_is_counted() -> None:
    with serving("full", "good") as url:
        tally = run(Load(url, seconds=0, output_tokens=3, images=0.5, image_size=32), clients=2)
    assert (tally.requests, tally.turned_away) == (2, 1)
    assert (tally.tokens, len(tally.ttft_ms), len(tally.gaps)) == (3, 1, 2)
    assert not tally.errors
    assert tally.memory[-1] == 250_000_000
    assert all(body["model"] == "some" and body["max_tokens"] == 3 for body in Server.seen)


def test_gaps_beside_pictures_are_those_while_one_was_waited_for() -> None:
    gaps = [(0.9, 1.0), (1.8, 2.0), (2.7, 3.0), (2.5, 5.0), (2.75, 2.8), (1.8, 1.9), (5.9, 6.0)]
    assert Tally(gaps=gaps).gaps_beside_pictures() == []
    # One that begins as a wait ends, as the first gap of who waited does, was not beside it.
    assert Tally(gaps=gaps, pictures=[(1.9, 2.5), (2.1, 2.75)]).gaps_beside_pictures() == gaps[1:4]


def test_some_requests_show_pictures() -> None:
    load, random = Load("http://127.0.0.1:9", images=0.5, image_size=32), np.random.default_rng(0)
    contents = [json.loads(_body(load, "some", 0, random))["messages"][0]["content"] for _ in range(60)]
    pictures = [content[0]["image_url"]["url"] for content in contents if content[0]["type"] == "image_url"]
    assert 15 < len(pictures) < 45
    assert 1 < len(set(pictures)) <= PICTURES
    data = base64.b64decode(pictures[0].partition(",")[2])
    assert Image.open(io.BytesIO(data)).size == (32, 32)


@pytest.mark.parametrize(
    ("way", "message"),
    [("broken", "status 500: oh"), ("error", "the model failed"), ("cut", "a stream ended before [DONE]")],
)
def test_errors_are_told(way: str, message: str) -> None:
    with serving(way, "good") as url:
        assert run(Load(url, seconds=0, images=0), clients=1).errors == {message: 1}
        assert run(Load(url, seconds=0, images=0), clients=1).errors == {}


def test_an_error_fails_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    with serving("error", "good") as url:
        command = ["load", url, "--clients", "1", "2", "--seconds=1", "--images=0", "--json"]
        assert main(command) == 1
    said = capsys.readouterr()
    assert "1 clients, 1 times: the model failed" in said.err
    first, second = json.loads(said.out.splitlines()[-1])["rounds"]
    assert (first["errors"], second["errors"]) == ({"the model failed": 1}, {})
    assert second["output_tokens_per_s"] > 0


def test_nobody_there_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["load", "http://127.0.0.1:9", "--seconds=1"]) == 1
    assert "does not tell its models (ConnectionRefusedError)" in capsys.readouterr().err
