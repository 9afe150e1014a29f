"""Arrivals that wait for nobody: what is sent when, and from when its time counts."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest

from bench.__main__ import main
from bench.arrivals import arrivals
from bench.client import Load
from bench.latency import AGAIN
from bench.open_loop import Asked, Plan, Request, by_size, checks, compare, drive, figures, ratio
from tests.http_server import answering

QUESTION = Request(b"{}")


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


def test_nobody_waits_for_an_answer_before_asking() -> None:
    """A server that answers nobody before all five have asked: clients in a loop would wait for ever."""
    with answering(Server(together=5)) as server:
        answers = drive(Load(server.url), [Request(b"{}")] * 5, np.zeros(5))
    assert [answer.problem for answer in answers] == [""] * 5


def test_an_answer_of_invisible_tokens_is_one() -> None:
    """A model that ends its answer and is not let: three tokens, and no word."""
    with answering(Server(silent=True)) as server:
        (answer,) = drive(Load(server.url), [Request(b"{}")], np.zeros(1))
    assert (answer.problem, answer.tokens) == ("", 3)
    assert answer.due <= answer.sent < answer.first == answer.last


def test_times_count_from_when_a_request_was_due() -> None:
    """By hand: a server stands still until 10 s; requests due at 0, 1, 2 and 3 s hear from it then."""
    asked = [Asked(due, due + 0.002, QUESTION, 10.0, 12.0, 5) for due in (0.0, 1.0, 2.0, 3.0)]
    found = figures(asked)
    assert found["ttft_ms"] == {"p50": 8000, "p95": 10_000, "p99": 10_000}
    assert found["e2e_latency_ms"]["p50"] == 10_000
    assert found["itl_ms"]["p99"] == pytest.approx(500)
    assert found["late_p99_ms"] == pytest.approx(2)


def test_what_was_never_answered_took_for_ever() -> None:
    answered = [Asked(0.0, 0.0, QUESTION, 0.1, 0.2, 2) for _ in range(19)]
    refused = [*answered, Asked(0.0, 0.0, QUESTION, problem="turned away")]
    found = figures(refused)
    assert found["e2e_latency_ms"] == pytest.approx({"p50": 200, "p95": 200, "p99": None})
    assert found["problems"] == {"turned away": 1}
    assert ratio([[*answered, answered[0]]], [refused], "e2e_latency_ms") is None


def test_ratios_are_request_by_request() -> None:
    first = [[Asked(0.0, 0.0, QUESTION, i, 2.0 * i, 2) for i in range(1, 13)]]
    other = [[Asked(0.0, 0.0, QUESTION, i, 3.0 * i, 2) for i in range(1, 13)]]
    found = ratio(first, other, "e2e_latency_ms")
    assert found
    assert (found.estimate, found.low, found.high) == pytest.approx((1.5, 1.5, 1.5))


def test_sizes_are_slices_and_the_same_for_all() -> None:
    """By hand: pictures of two sizes and none, questions of up to 8 and of up to 16 words."""
    shown = [(0, 5), (0, 16), (224, 9), (448, 8)]
    asked = [Asked(0.0, 0.0, Request(b"", *sizes), 0.1, 0.2, 2) for sizes in shown]
    assert {name: len(part) for name, part in by_size(asked).items()} == {
        "no picture": 2,
        "picture of 224 pixels": 1,
        "picture of 448 pixels": 1,
        "question of 5–8 words": 2,
        "question of 9–16 words": 2,
    }
    plan = Plan(rates=(1000.0,), image_sizes=(16, 32), requests=30, rounds=1)
    with answering(Server()) as server:
        outcome = compare([server.url], Load(server.url, images=0.7), plan)
    sizes = [[one.request.sizes for one in rounds[0]] for rounds in outcome.asked.values()]
    assert all(each == sizes[0] for each in sizes)
    assert {picture for picture, _ in sizes[0]} == {
        "no picture",
        "picture of 16 pixels",
        "picture of 32 pixels",
    }


def answers(*seconds: float, n: int = 12) -> list[list[Asked]]:
    """n requests whose answers take as long, one after the other in turn."""
    return [[Asked(0.0, 0.0, QUESTION, s := seconds[i % len(seconds)], 2 * s, 3) for i in range(n)]]


@pytest.mark.parametrize(
    ("again", "other", "verdict"),
    [
        ((1.0,), (1.1,), "PASS"),
        ((1.0,), (1.2,), "FAIL"),
        ((1.2,), (1.2,), "INCONCLUSIVE"),  # the first server is as far from itself
        ((0.7, 0.7, 1.4, 1.4), (1.0,), "INCONCLUSIVE"),
    ],
)
def test_a_verdict_needs_a_first_server_that_is_like_itself(
    again: tuple[float, ...], other: tuple[float, ...], verdict: str
) -> None:
    found = list(checks(answers(1.0), answers(*again), answers(*other), 0.5, 1.15))
    assert [check.name for check in found] == ["ttft_ms p50, load 0.5", "e2e_latency_ms, load 0.5"]
    assert {check.verdict for check in found} == {verdict}


def test_what_is_left_unanswered_is_no_pass() -> None:
    lost = [[*answers(0.1)[0][1:], Asked(0.0, 0.0, QUESTION, problem="turned away")]]
    for first, other, verdict in ((answers(1.0), lost, "FAIL"), (lost, answers(1.0), "INCONCLUSIVE")):
        assert {check.verdict for check in checks(first, first, other, 0.0, 1.15)} == {verdict}


def test_all_servers_are_asked_the_same_and_nothing_twice() -> None:
    plan = Plan(rates=(50.0, 100.0), image_sizes=(32,), requests=4, rounds=2, seed=3)
    with answering(Server()) as one, answering(Server()) as two:
        outcome = compare([one.url, two.url], Load(one.url, images=0.5), plan)
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
        assert (loaded["verdict"], loaded["checks"]) == (None, [])  # there is nobody to hold against it
        assert "no picture" in loaded["slices"]
        assert main([*line, "--rates", "50"]) == 0
        assert "one by one" in capsys.readouterr().out


@pytest.mark.parametrize(("limit", "code", "verdict"), [("1000", 0, "PASS"), ("0.000001", 3, "FAIL")])
def test_the_exit_code_is_the_verdicts(
    limit: str, code: int, verdict: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with answering(Server()) as one, answering(Server()) as two:
        line = ["open-loop", one.url, two.url, "--requests", "8", "--rounds", "1", "--images", "0"]
        assert main([*line, "--rates", "0.5", "--latency-ratio", limit, "--json"]) == code
    said = capsys.readouterr()
    document = json.loads(said.out.splitlines()[-1])
    assert document["verdict"] == verdict
    assert [row["verdict"] for row in document["rows"]] == [None, verdict] * 2
    assert f"{two.url} at 0.5: e2e_latency_ms {verdict}" in said.err


def test_a_server_that_fails_fails_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    with answering(Server()) as server:
        server.RequestHandlerClass = type(
            "Broken", (Handler,), {"do_POST": lambda self: self._send(500, b"oh")}
        )
        assert main(["open-loop", server.url, "--requests", "2", "--rounds", "1", "--images", "0"]) == 1
    said = capsys.readouterr()
    assert "2 times: status 500: oh" in said.err
    assert "0 of 2" in said.out
