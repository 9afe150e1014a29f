"""Arrivals that wait for nobody: what is sent when, and from when its time counts."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest

from bench.__main__ import main
from bench.client import Load
from bench.latency import AGAIN
from bench.open_loop import Asked, Plan, arrivals, compare, drive, figures, ratio
from tests.conftest import ROOT
from tests.http_server import answering


class Server(ThreadingHTTPServer):
    """Answers in three words once `together` requests are there; every `full`th is turned away."""

    def __init__(self, together: int = 1, full: int = 0, silent: bool = False) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.together, self.full = threading.Barrier(together), full
        self.silent = silent
        self.seen: list[dict[str, Any]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self._send(200, b'{"data": [{"id": "some"}]}')

    def do_POST(self) -> None:
        self.server.seen.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
        self.server.together.wait(60)
        if self.server.full and len(self.server.seen) % self.server.full == 0:
            return self._send(429, b"{}")
        said = "" if self.server.silent else "abc"
        events: list[dict[str, Any]] = [{"choices": [{"delta": {"content": word}}]} for word in said]
        events.append({"choices": [], "usage": {"completion_tokens": 3}})
        text = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"
        return self._send(200, text.encode())

    def _send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


def test_the_schedule_is_the_same_bits_in_every_process() -> None:
    code = "from bench.open_loop import arrivals; print(arrivals(3.0, 50, 7).tobytes().hex())"
    told = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert told.stdout.strip() == arrivals(3.0, 50, 7).tobytes().hex()
    assert not np.array_equal(arrivals(3.0, 50, 8), arrivals(3.0, 50, 7))


def test_arrivals_are_a_poisson_process() -> None:
    """Gaps have mean and deviation 1 / rate; a lower rate is the same process more slowly."""
    gaps = np.diff(arrivals(4.0, 20_000, 0))
    assert gaps.mean() == pytest.approx(0.25, rel=0.03)
    assert gaps.std() == pytest.approx(0.25, rel=0.03)
    np.testing.assert_allclose(arrivals(2.0, 9, 5), 2 * arrivals(4.0, 9, 5))


def test_nobody_waits_for_an_answer_before_asking() -> None:
    """A server that answers nobody before all five have asked: clients in a loop would wait for ever."""
    with answering(Server(together=5)) as server:
        answers = drive(Load(server.url), [b"{}"] * 5, np.zeros(5))
    assert [answer.problem for answer in answers] == [""] * 5


def test_an_answer_of_invisible_tokens_is_one() -> None:
    """A model that ends its answer and is not let: three tokens, and no word."""
    with answering(Server(silent=True)) as server:
        (answer,) = drive(Load(server.url), [b"{}"], np.zeros(1))
    assert (answer.problem, answer.tokens) == ("", 3)
    assert answer.due <= answer.sent < answer.first == answer.last


def test_times_count_from_when_a_request_was_due() -> None:
    """By hand: a server stands still until 10 s; requests due at 0, 1, 2 and 3 s hear from it then."""
    asked = [Asked(due, due + 0.002, False, 10.0, 12.0, 5) for due in (0.0, 1.0, 2.0, 3.0)]
    found = figures(asked)
    assert found["ttft_ms"] == {"p50": 8000, "p95": 10_000, "p99": 10_000}
    assert found["e2e_latency_ms"]["p50"] == 10_000
    assert found["itl_ms"]["p99"] == pytest.approx(500)
    assert found["late_p99_ms"] == pytest.approx(2)


def test_what_was_never_answered_took_for_ever() -> None:
    answered = [Asked(0.0, 0.0, False, 0.1, 0.2, 2) for _ in range(19)]
    refused = [*answered, Asked(0.0, 0.0, False, problem="turned away")]
    found = figures(refused)
    assert found["e2e_latency_ms"] == pytest.approx({"p50": 200, "p95": 200, "p99": None})
    assert found["problems"] == {"turned away": 1}
    assert ratio([[*answered, answered[0]]], [refused], "e2e_latency_ms") is None


def test_ratios_are_request_by_request() -> None:
    first = [[Asked(0.0, 0.0, False, i, 2.0 * i, 2) for i in range(1, 13)]]
    other = [[Asked(0.0, 0.0, False, i, 3.0 * i, 2) for i in range(1, 13)]]
    found = ratio(first, other, "e2e_latency_ms")
    assert found
    assert (found.estimate, found.low, found.high) == pytest.approx((1.5, 1.5, 1.5))


def test_all_servers_are_asked_the_same_and_nothing_twice() -> None:
    plan = Plan(rates=(50.0, 100.0), requests=4, rounds=2, seed=3)
    with answering(Server()) as one, answering(Server()) as two:
        outcome = compare([one.url, two.url], Load(one.url, images=0.5, image_size=32), plan)
    assert set(outcome.asked) == {
        (rate, name) for rate in (0.0, 50.0, 100.0) for name in (one.url, one.url + AGAIN, two.url)
    }
    assert {len(part) for rounds in outcome.asked.values() for part in rounds} == {4}
    assert {len(rounds) for rounds in outcome.asked.values()} == {2}
    alone = [answer.e2e_latency_ms for part in outcome.asked[0.0, one.url] for answer in part]
    assert outcome.capacity == pytest.approx(1e3 / np.mean(alone))
    for rate in (50.0, 100.0):  # the same schedule for all: from the first's due on
        due = {
            tuple(round(answer.due - part[0].due, 6) for answer in part)
            for name in (one.url, one.url + AGAIN, two.url)
            for part in outcome.asked[rate, name]
        }
        schedule = arrivals(rate * outcome.capacity, 4, 3)
        assert due == {tuple(np.round(schedule - schedule[0], 6))}
    contents = [body["messages"][0]["content"] for body in one.seen + two.seen]
    assert len(contents) == len({json.dumps(content) for content in contents}) == 3 * 3 * 2 * 4
    pictures = [content[0]["image_url"]["url"] for content in contents if len(content) == 2]
    assert len(set(pictures)) == len(pictures) > 0
    sizes = [len(content[-1]["text"].split()) for content in contents]
    assert len(set(sizes)) <= 4  # of the four requests, in every visit


def test_the_command_tells_what_was_turned_away(capsys: pytest.CaptureFixture[str]) -> None:
    with answering(Server(full=24)) as server:  # 8 one by one, twice; then 8 of which the last is refused
        line = ["open-loop", server.url, "--requests", "8", "--rounds", "1", "--images", "0"]
        assert main([*line, "--rates", "50", "--json"]) == 0
        alone, loaded = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
        assert (alone["problems"], alone["rate"]) == ({}, 0)
        assert loaded["problems"] == {"turned away": 1}
        assert loaded["e2e_latency_ms"]["p99"] is None
        assert loaded["e2e_ratio"] is None
        assert alone["noise"]["low"] <= alone["noise"]["high"]
        assert set(loaded["slices"]) == {"without"}
        assert main([*line, "--rates", "50"]) == 0
        assert "one by one" in capsys.readouterr().out


def test_a_server_that_fails_fails_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    with answering(Server()) as server:
        server.RequestHandlerClass = type(
            "Broken", (Handler,), {"do_POST": lambda self: self._send(500, b"oh")}
        )
        assert main(["open-loop", server.url, "--requests", "2", "--rounds", "1", "--images", "0"]) == 1
    said = capsys.readouterr()
    assert "2 times: status 500: oh" in said.err
    assert "0 of 2" in said.out
