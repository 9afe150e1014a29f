"""The data path between scripted arms and raw clients: what is relayed, retried, broken off, and told."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop

from tests.scripted_arm import (
    LAST,
    STREAM,
    Asked,
    ScriptedArm,
    answers,
    ask,
    event,
    policy_text,
    read_answer,
    read_chunk,
    request,
    routing,
    scripted_arm,
    whole,
)

PATIENCE_S = 120


def run(test: Awaitable[None]) -> None:
    """Runs it as the router runs, within a time that only a hang exceeds."""

    async def bounded() -> None:
        async with asyncio.timeout(PATIENCE_S):
            await test

    uvloop.run(bounded())


def log_lines(folder: Path) -> list[dict[str, Any]]:
    """The log of a router that has ended."""
    return [json.loads(line) for line in (folder / "log").read_text().splitlines()]


async def refuse(asked: Asked, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()
    raise ConnectionResetError


def test_requests_and_answers_pass_unchanged(tmp_path: Path) -> None:
    body = bytes(range(256)) * 5000

    async def test() -> None:
        sent = whole(body[::-1], 201, b"x-one: 1\r\nconnection: x-two\r\nx-two: 2\r\nx-ab-arm: forged\r\n")

        async def script(asked: Asked, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(sent)

        async with scripted_arm(script) as arm, routing(tmp_path, policy_text(arm)) as router:
            answer = await ask(
                router.port,
                request(
                    body,
                    target="/v1/x?y=%20",
                    Connection="x-drop",
                    X_Drop="1",
                    Proxy_Connection="a",
                    Upgrade="h2c",
                    TE="trailers",
                    Keep_Alive="timeout=5",
                    X_Keep="2",
                ),
            )
            (asked,) = arm.asked
            assert asked.body == body
            assert asked.head.startswith(b"POST /v1/x?y=%20 HTTP/1.1\r\n")
            assert asked.header("host") == [arm.url.removeprefix("http://")]
            assert asked.header("x-keep") == ["2"]
            assert not asked.header("x-drop")
            assert not [
                name
                for name in ("proxy-connection", "upgrade", "te", "keep-alive", "connection")
                if asked.header(name)
            ]
            assert (answer.status, answer.body) == (201, body[::-1])
            assert answer.header("x-one") == ["1"]
            assert not answer.header("x-two")
            assert answer.header("x-ab-arm") == ["a"], "what an arm says of itself is replaced"
            assert answer.header("x-artifact-digest") == ["sha256:aa"]

    run(test())


def test_chunked_requests_pass(tmp_path: Path) -> None:
    async def test() -> None:
        async with scripted_arm(answers(b"ok")) as arm, routing(tmp_path, policy_text(arm)) as router:
            head = b"POST / HTTP/1.1\r\nHost: r\r\nTransfer-Encoding: chunked\r\n\r\n"
            answer = await ask(router.port, head + b"3;x=y\r\nabc\r\n1\r\nd\r\n0\r\nTrailer: 1\r\n\r\n")
            assert answer.body == b"ok"
            assert arm.asked[0].body == b"abcd"

    run(test())


@pytest.mark.parametrize(
    ("method", "answer", "status"),
    [
        ("HEAD", b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n", 200),
        ("GET", b"HTTP/1.1 204 No Content\r\n\r\n", 204),
        ("GET", b"HTTP/1.1 304 Not Modified\r\n\r\n", 304),
        ("GET", b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + whole(b"late"), 200),
    ],
)
def test_answers_without_a_body_leave_the_connection_usable(
    method: str, answer: bytes, status: int, tmp_path: Path
) -> None:
    async def test() -> None:
        async def script(asked: Asked, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(answer)

        async with scripted_arm(script) as arm, routing(tmp_path, policy_text(arm)) as router:
            reader, writer = await asyncio.open_connection("127.0.0.1", router.port)
            for _ in range(3):
                writer.write(request(b"", method=method))
                got = await read_answer(reader, method=method)
                assert got.status == status
                assert not got.header("link")
            writer.close()

    run(test())


def test_an_answer_that_ends_with_its_connection_is_framed(tmp_path: Path) -> None:
    async def test() -> None:
        async def script(asked: Asked, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"HTTP/1.1 200 OK\r\n\r\nall of it")
            raise ConnectionResetError

        async with scripted_arm(script) as arm, routing(tmp_path, policy_text(arm)) as router:
            answer = await ask(router.port, request())
            assert answer.header("transfer-encoding") == ["chunked"]
            assert answer.body == b"all of it"
            old = await ask(router.port, b"GET / HTTP/1.0\r\n\r\n")
            assert not old.header("transfer-encoding")
            assert old.body == b"all of it"

    run(test())


def test_events_are_relayed_one_by_one(tmp_path: Path) -> None:
    """The arm sends an event only when the client has the one before: any buffer would hang."""

    async def test() -> None:
        seen = asyncio.Event()

        async def script(asked: Asked, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(STREAM)
            for number in range(20):
                writer.write(event(str(number)))
                await seen.wait()
                seen.clear()
            writer.write(LAST)

        async with scripted_arm(script) as arm, routing(tmp_path, policy_text(arm)) as router:
            reader, writer = await asyncio.open_connection("127.0.0.1", router.port)
            writer.write(request())
            await reader.readuntil(b"\r\n\r\n")
            for number in range(20):
                assert await read_chunk(reader) == f"data: {number}\n\n".encode()
                seen.set()
            assert await read_chunk(reader) == b""
            writer.close()

    run(test())


def test_a_client_that_leaves_ends_the_arms_work(tmp_path: Path) -> None:
    async def test() -> None:
        async def script(asked: Asked, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(STREAM + event("0"))
            await reader.readexactly(1)  # until the router closes

        async with scripted_arm(script) as arm, routing(tmp_path, policy_text(arm)) as router:
            reader, writer = await asyncio.open_connection("127.0.0.1", router.port)
            writer.write(request())
            await reader.readuntil(b"data: 0")
            writer.close()
            await arm.left.wait()
            assert router.control.router.live.arms["a"].in_flight == 0

    run(test())
    (line,) = log_lines(tmp_path)
    assert (line["http.response.status_code"], line["error.type"]) == (499, "client_closed")


def test_back_pressure_reaches_the_arm(tmp_path: Path) -> None:
    """A client that reads nothing makes the arm wait, not the router grow."""

    async def test() -> None:
        sent = 0
        full = asyncio.Event()

        async def script(asked: Asked, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal sent
            writer.write(STREAM)
            block = event("x" * 65_000)
            while sent < 200_000_000:
                writer.write(block)
                sent += len(block)
                try:
                    async with asyncio.timeout(1.0):
                        await writer.drain()
                except TimeoutError:
                    full.set()
                    await writer.drain()
            writer.write(LAST)

        async with scripted_arm(script) as arm, routing(tmp_path, policy_text(arm)) as router:
            _, writer = await asyncio.open_connection("127.0.0.1", router.port)
            writer.write(request())
            await full.wait()
            assert sent < 50_000_000, "loopback's own buffers, and no more"
            writer.transport.abort()
            await arm.left.wait()

    run(test())


def test_an_upload_waits_for_the_arm(tmp_path: Path) -> None:
    body = b"x" * 30_000_000

    async def test() -> None:
        go = asyncio.Event()
        more = "health: {interval_s: 1000}\n"
        async with (
            scripted_arm(answers(b"got it"), gate=go) as arm,
            routing(tmp_path, policy_text(arm, more=more)) as router,
        ):
            reader, writer = await asyncio.open_connection("127.0.0.1", router.port)
            writer.write(request(body))
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.5):
                    await writer.drain()
            go.set()
            assert (await read_answer(reader)).body == b"got it"
            writer.close()
            assert arm.asked[0].body == body

    run(test())


def failing(times: int, then: bytes) -> Callable[..., Awaitable[None]]:
    """A script that drops connections so often, and then answers."""
    left = times

    async def script(asked: Asked, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal left
        if left:
            left -= 1
            await refuse(asked, reader, writer)
        writer.write(whole(then))

    return script


def test_a_dropped_request_is_tried_again_in_its_arm(tmp_path: Path) -> None:
    async def test() -> None:
        async with (
            scripted_arm(failing(1, b"a")) as a,
            scripted_arm(answers(b"b")) as b,
            routing(tmp_path, policy_text(a, b, more="fallback: [b]\n")) as router,
        ):
            answer = await ask(router.port, request(b"the body"))
            assert (answer.body, answer.header("x-ab-arm")) == (b"a", ["a"])
            assert [asked.body for asked in a.asked] == [b"the body"] * 2
            assert not b.asked

    run(test())
    (line,) = log_lines(tmp_path)
    assert line["ab.attempts"] == 2
    assert "ab.fallback" not in line


def test_a_fallback_is_counted_against_the_assigned_arm(tmp_path: Path) -> None:
    async def test() -> None:
        async with (
            scripted_arm(refuse) as a,
            scripted_arm(answers(b"b")) as b,
            routing(tmp_path, policy_text(a, b, more="fallback: [b]\n")) as router,
        ):
            answer = await ask(router.port, request())
            assert (answer.body, answer.header("x-ab-arm")) == (b"b", ["b"])
            text = router.control.router.metrics.text({}, 1, 0)
            assert 'router_fallbacks_total{arm="a",mirror="false",reason="reset"} 1' in text

    run(test())
    (line,) = log_lines(tmp_path)
    assert (line["feature_flag.result.variant"], line["ab.arm"], line["ab.fallback"]) == ("a", "b", "reset")


def test_a_body_that_comes_late_reaches_the_fallback(tmp_path: Path) -> None:
    """It waits while the assigned arm is not to be reached; the fallback has a connection ready."""
    head, body = request(b"the body").split(b"the body")[0], b"the body"

    async def test() -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            closed = ScriptedArm(taken.getsockname()[1])
        more = "fallback: [b]\nlimits: {stall_s: 1}\n"
        async with (
            scripted_arm(answers(b"b")) as b,
            routing(tmp_path, policy_text(closed, b, more=more)) as router,
        ):
            await ask(router.port, head + body)
            reader, writer = await asyncio.open_connection("127.0.0.1", router.port)
            writer.write(head)
            while not router.control.router.live.arms["b"].in_flight:
                await asyncio.sleep(0.01)
            writer.write(body)
            assert (await read_answer(reader)).body == b"b"
            assert (b.asked[1].body, b.connections) == (body, 1)
            writer.close()

    run(test())


@pytest.mark.parametrize("length", [True, False], ids=["whole", "in pieces"])
def test_an_arm_that_starts_or_stops_costs_no_request(tmp_path: Path, length: bool) -> None:
    """It says 503 meanwhile; only where nobody else is left does the client hear it."""
    folders = [tmp_path / name for name in "abc"]
    for folder in folders:
        folder.mkdir()
    full = whole(b"draining", 503) if length else STREAM.replace(b"200", b"503") + event("draining")

    async def turn_away(asked: Asked, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(full)
        await reader.readexactly(1)  # until the router closes

    async def test() -> None:
        async with (
            scripted_arm(turn_away) as a,
            scripted_arm(answers(b"b")) as b,
            scripted_arm(answers(b"not now", 503, b"retry-after: 7\r\n")) as c,
        ):
            async with routing(folders[0], policy_text(a, b, more="fallback: [b]\n")) as router:
                answer = await ask(router.port, request(b"the body"))
                assert (answer.status, answer.body, answer.header("x-ab-arm")) == (200, b"b", ["b"])
                assert (a.asked[0].body, b.asked[0].body) == (b"the body", b"the body")
                assert router.control.router.live.arms["a"].in_flight == 0
                assert router.control.router.live.arms["a"].breaker.failures == 1
            async with routing(folders[1], policy_text(c, b, more="fallback: [b]\n")) as router:
                large = b"x" * 2_000_000  # not kept for another arm
                answer = await ask(router.port, request(large))
                assert (answer.status, answer.header("retry-after")) == (503, ["7"])
            async with routing(folders[2], policy_text(c)) as router:
                assert (await ask(router.port, request())).header("retry-after") == ["7"]

    run(test())
    (first,) = log_lines(folders[0])
    assert (first["feature_flag.result.variant"], first["ab.arm"], first["ab.fallback"]) == ("a", "b", "503")


def test_without_a_fallback_the_client_is_told(tmp_path: Path) -> None:
    async def test() -> None:
        async with scripted_arm(refuse) as a, routing(tmp_path, policy_text(a)) as router:
            answer = await ask(router.port, request())
            assert answer.status == 503
            assert json.loads(answer.body)["error"]["type"] == "api_error"

    run(test())


@pytest.mark.parametrize(
    ("more", "begun"),
    [(b"", event("0")), (b"", b"10\r\ndata: half"), (b"zz not http\r\n\r\n", event("0"))],
    ids=["reset", "within an event", "garbage"],
)
def test_a_stream_that_breaks_ends_with_an_error_event(more: bytes, begun: bytes, tmp_path: Path) -> None:
    async def test() -> None:
        async def script(asked: Asked, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(STREAM + begun + more)
            await writer.drain()
            raise ConnectionResetError

        async with (
            scripted_arm(script) as a,
            scripted_arm(answers(b"b")) as b,
            routing(tmp_path, policy_text(a, b, more="fallback: [b]\n")) as router,
        ):
            answer = await ask(router.port, request())
            assert answer.whole, "the chunks end properly"
            *_, last, end = answer.body.split(b"\n\n")
            assert end == b""
            assert last.startswith(b"event: error\ndata: ")
            assert "broke off" in json.loads(last.partition(b"data: ")[2])["error"]["message"]
            assert not b.asked, "what was begun is never begun again"
            assert len(a.asked) == 1

    run(test())


def test_a_plain_answer_that_breaks_is_cut(tmp_path: Path) -> None:
    async def test() -> None:
        async def script(asked: Asked, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf")
            await writer.drain()
            raise ConnectionResetError

        async with scripted_arm(script) as a, routing(tmp_path, policy_text(a)) as router:
            answer = await ask(router.port, request())
            assert not answer.whole

    run(test())


@pytest.mark.parametrize(
    "garbage",
    [
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab",
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: " + b"y" * 100_000,
    ],
)
def test_an_arm_that_speaks_no_http_is_left(garbage: bytes, tmp_path: Path) -> None:
    async def test() -> None:
        async def script(asked: Asked, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(garbage)
            await reader.readexactly(1)

        async with (
            scripted_arm(script) as a,
            scripted_arm(answers(b"b")) as b,
            routing(tmp_path, policy_text(a, b, more="fallback: [b]\n")) as router,
        ):
            assert (await ask(router.port, request())).body == b"b"

    run(test())


def test_an_arm_cannot_split_answers(tmp_path: Path) -> None:
    """Content-Length beside chunks, and more bytes than were asked for, never reach the next request."""

    async def test() -> None:
        async def script(asked: Asked, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(whole(b"one") + whole(b"not asked for"))

        async with scripted_arm(script) as a, routing(tmp_path, policy_text(a)) as router:
            reader, writer = await asyncio.open_connection("127.0.0.1", router.port)
            for _ in range(5):
                writer.write(request())
                assert (await read_answer(reader)).body == b"one"
            writer.close()

    run(test())


@pytest.mark.parametrize(
    ("timeouts", "answer", "status", "error"),
    [
        ("{first_byte_s: 0.3}", b"", 504, "first_byte_timeout"),
        ("{idle_s: 0.3}", STREAM + event("0"), 200, "idle_timeout"),
    ],
)
def test_a_hung_arm_is_waited_for_no_longer_than_said(
    timeouts: str, answer: bytes, status: int, error: str, tmp_path: Path
) -> None:
    async def test() -> None:
        async def script(asked: Asked, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(answer)
            await reader.readexactly(1)

        async with scripted_arm(script) as a:
            text = policy_text(a).replace("sha256:aa", f'sha256:aa", timeouts: {timeouts}, max_requests: "9')
            async with routing(tmp_path, text) as router:
                assert (await ask(router.port, request())).status == status
                await a.left.wait()

    run(test())
    (line,) = log_lines(tmp_path)
    assert line["error.type"] == error


def test_while_the_router_stands_still_nobody_is_late(tmp_path: Path) -> None:
    """The arm has answered and is healthy; a router that could not look for a while reads that first."""

    async def test() -> None:
        async def script(asked: Asked, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(whole(b"in time"))
            time.sleep(1.5)  # the router is on this loop

        async with scripted_arm(script) as a:
            text = policy_text(a, more="health: {timeout_s: 0.5, interval_s: 0.1, failures: 1}\n")
            text = text.replace("sha256:aa", 'sha256:aa", timeouts: {first_byte_s: 0.5}, max_requests: "9')
            async with routing(tmp_path, text) as router:
                assert (await ask(router.port, request())).body == b"in time"
                assert router.control.router.live.arms["a"].healthy

    run(test())


def test_breaker_opens_and_one_trial_closes_it(tmp_path: Path) -> None:
    async def test() -> None:
        async with (
            scripted_arm(failing(3, b"a")) as a,
            scripted_arm(answers(b"b")) as b,
            routing(
                tmp_path,
                policy_text(a, b, more="fallback: [b]\nretries: 0\nbreaker: {failures: 3, open_s: 0.2}\n"),
            ) as router,
        ):
            breaker = router.control.router.live.arms["a"].breaker
            for _ in range(3):
                assert (await ask(router.port, request())).body == b"b"
            assert breaker.state == "open"
            asked = len(a.asked)
            assert (await ask(router.port, request())).body == b"b"
            assert len(a.asked) == asked, "an open breaker lets nothing through"
            while breaker.state == "open":
                await asyncio.sleep(0.01)
            assert (await ask(router.port, request())).body == b"a"
            assert breaker.state == "closed"

    run(test())


@pytest.mark.parametrize("fallback", ["", "fallback: [b]\n"], ids=["alone", "beside a dead one"])
def test_an_arm_on_trial_takes_more_where_no_other_is_left(tmp_path: Path, fallback: str) -> None:
    """Two ask at once while the arm's breaker is half-open: to refuse the second would surely lose it."""
    failed, both = False, asyncio.Barrier(2)

    async def script(asked: Asked, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal failed
        if not failed:
            failed = True
            await refuse(asked, reader, writer)
        await both.wait()
        writer.write(whole(b"a"))

    async def test() -> None:
        more = fallback + "retries: 0\nbreaker: {failures: 1, open_s: 0.1}\nhealth: {interval_s: 1000}\n"
        async with scripted_arm(answers(b"b")) as b:
            pass
        async with (
            scripted_arm(script) as a,
            routing(tmp_path, policy_text(a, b, more=more)) as router,
        ):
            assert (await ask(router.port, request())).status in (502, 503)
            breaker = router.control.router.live.arms["a"].breaker
            while breaker.state != "half-open":
                await asyncio.sleep(0.01)
            two = await asyncio.gather(*(ask(router.port, request()) for _ in range(2)))
            assert [answer.body for answer in two] == [b"a", b"a"]
            assert breaker.state == "closed"
        lines = log_lines(tmp_path)
        assert [line.get("ab.fallback") for line in lines[1:]] == [None, None]

    run(test())


def test_an_unhealthy_arm_gets_nothing_until_it_is_well(tmp_path: Path) -> None:
    async def test() -> None:
        async with scripted_arm(answers(b"b")) as b:
            async with scripted_arm(answers(b"a")) as a:
                port = a.port
                text = policy_text(a, b, more="fallback: [b]\nhealth: {interval_s: 0.02, failures: 2}\n")
                context = routing(tmp_path, text)
                router = await context.__aenter__()
                assert (await ask(router.port, request())).body == b"a"
            arm = router.control.router.live.arms["a"]
            while arm.healthy:
                await asyncio.sleep(0.01)
            assert (await ask(router.port, request())).body == b"b"
            async with scripted_arm(answers(b"again"), port):
                while not arm.healthy:
                    await asyncio.sleep(0.01)
                assert (await ask(router.port, request())).body == b"again"
            await context.__aexit__(None, None, None)

    run(test())


def test_connections_are_kept_and_a_stale_one_costs_nothing(tmp_path: Path) -> None:
    async def test() -> None:
        async def script(asked: Asked, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(whole(b"ok"))
            if b"/last" in asked.head:
                raise ConnectionResetError  # closes while the router keeps it as idle

        async with (
            scripted_arm(script) as a,
            routing(tmp_path, policy_text(a, more="retries: 0\nhealth: {interval_s: 1000}\n")) as router,
        ):
            for _ in range(10):
                assert (await ask(router.port, request())).status == 200
            assert a.connections == 1
            for _ in range(10):
                assert (await ask(router.port, request(target="/last"))).status == 200
                assert (await ask(router.port, request())).status == 200
            assert router.control.router.live.arms["a"].breaker.failures == 0

    run(test())


def test_more_than_an_arm_may_have_goes_to_the_fallback(tmp_path: Path) -> None:
    async def test() -> None:
        go = asyncio.Event()

        async def script(asked: Asked, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await go.wait()
            writer.write(whole(b"a"))

        async with scripted_arm(script) as a, scripted_arm(answers(b"b")) as b:
            text = policy_text(a, b, more="fallback: [b]\n").replace(
                "sha256:aa", 'sha256:aa", max_requests: "2'
            )
            async with routing(tmp_path, text) as router:
                held = [asyncio.create_task(ask(router.port, request())) for _ in range(2)]
                arm = router.control.router.live.arms["a"]
                while arm.in_flight < 2:
                    await asyncio.sleep(0.01)
                assert (await ask(router.port, request())).body == b"b"
                go.set()
                assert [answer.body for answer in await asyncio.gather(*held)] == [b"a", b"a"]

    run(test())
    assert [line.get("ab.fallback") for line in log_lines(tmp_path)] == ["overloaded", None, None]


def test_a_mirror_gets_copies_and_nobody_waits_for_it(tmp_path: Path) -> None:
    async def test() -> None:
        copied = asyncio.Event()

        async def hang(asked: Asked, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            copied.set()
            await reader.readexactly(1)

        async with (
            scripted_arm(hang) as a,
            scripted_arm(answers(b"b")) as b,
            routing(
                tmp_path, policy_text(a, b, weight_a=0, more="mirror: {arm: a, percent: 100}\n")
            ) as router,
        ):
            assert (await ask(router.port, request(b"body"))).body == b"b"
            await copied.wait()
            assert a.asked[0].body == b"body"

    run(test())


def test_the_openai_user_is_a_key(tmp_path: Path) -> None:
    async def test() -> None:
        async with scripted_arm(answers(b"a")) as a, scripted_arm(answers(b"b")) as b:
            text = policy_text(a, b, weight_a=50).replace("header:x-user-id", "user")
            async with routing(tmp_path, text) as router:
                assign = router.control.router.live.assign
                for number in range(30):
                    user = f"user-{number}"
                    body = json.dumps({"model": "m", "user": user}).encode()
                    got = (await ask(router.port, request(body))).body.decode()
                    assert got == assign({}, "127.0.0.1", user).arm

    run(test())


def test_the_log_has_the_public_names(tmp_path: Path) -> None:
    async def test() -> None:
        async def script(asked: Asked, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(STREAM + event('{"id":"c1","model":"m-1","choices":[{"finish_reason":null}]}'))
            await writer.drain()
            await asyncio.sleep(0.01)
            usage = event('{"id":"c1","choices":[],"usage":{"prompt_tokens":7,"completion_tokens":5}}')
            for number in range(0, len(usage), 7):  # pieces that end anywhere
                writer.write(usage[number : number + 7])
                await writer.drain()
                await asyncio.sleep(0.002)
            writer.write(event('{"choices":[{"finish_reason":"stop"}]}') + event("[DONE]") + LAST)

        async with scripted_arm(script) as a, routing(tmp_path, policy_text(a)) as router:
            await ask(router.port, request(b'{"model": "m", "messages": []}', X_User_Id="anna"))

    run(test())
    (line,) = log_lines(tmp_path)
    assert "anna" not in json.dumps(line)
    assert 0 < line["ab.ttft_ms"] < line["ab.e2e_latency_ms"]
    assert line["ab.itl_ms"] > 0
    assert (
        line
        | {
            "client.address": "127.0.0.1",
            "http.request.method": "POST",
            "url.path": "/v1/chat/completions",
            "http.response.status_code": 200,
            "feature_flag.key": "e",
            "feature_flag.result.variant": "a",
            "feature_flag.result.reason": "split",
            "feature_flag.version": "1",
            "gen_ai.request.model": "m",
            "gen_ai.response.model": "m-1",
            "gen_ai.response.id": "c1",
            "gen_ai.response.finish_reasons": ["stop"],
            "gen_ai.usage.input_tokens": 7,
            "gen_ai.usage.output_tokens": 5,
            "ab.arm": "a",
            "ab.artifact_digest": "sha256:aa",
            "ab.attempts": 1,
        }
        == line
    )


@pytest.mark.parametrize(
    ("given", "logged"), [("mine-1", ["mine-1"]), ("", None), ("a b", None), ("x" * 129, None)]
)
def test_a_request_is_found_in_the_log_by_the_id_its_client_gave(
    tmp_path: Path, given: str, logged: list[str] | None
) -> None:
    """Answered or refused; its copy too."""

    async def test() -> None:
        async with (
            scripted_arm(answers(b"ok")) as a,
            scripted_arm(answers(b"ok")) as b,
            routing(tmp_path, policy_text(a, b, more="mirror: {arm: b, percent: 100}\n")) as router,
        ):
            await ask(router.port, request(X_Request_Id=given))
            await ask(router.port, request(X_Request_Id=given, Expect="nothing"))
            assert a.asked[0].header("x-request-id") == [given]
            while router.control.router.watched:  # the copy is answered when it may
                await asyncio.sleep(0.01)

    run(test())
    lines = log_lines(tmp_path)
    assert sorted((line["http.response.status_code"], line.get("ab.mirror", False)) for line in lines) == [
        (200, False),
        (200, True),
        (417, False),
    ]
    assert [line.get("http.request.header.x-request-id") for line in lines] == [logged] * 3


def test_the_log_reaches_a_collector(tmp_path: Path) -> None:
    """Read with OpenTelemetry's protocol definitions, as a collector does."""
    from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

    async def test() -> None:
        async with (
            scripted_arm(answers(b"")) as collector,
            scripted_arm(answers(b'{"model": "m"}')) as a,
        ):
            async with routing(tmp_path, policy_text(a), otlp=collector.url) as router:
                await ask(router.port, request(b'{"model": "m"}', X_User_Id="anna"))
                exported = router.control.router.observers[-1].__self__  # type: ignore[attr-defined]
                await asyncio.to_thread(exported._provider.force_flush)
            sent = ExportLogsServiceRequest()
            sent.ParseFromString(gzipped(collector.asked[0]))
            (told,) = sent.resource_logs[0].scope_logs[0].log_records
            attributes = {item.key: item.value for item in told.attributes}
            assert attributes["feature_flag.result.variant"].string_value == "a"
            assert attributes["gen_ai.request.model"].string_value == "m"
            assert attributes["http.response.status_code"].int_value == 200
            assert "anna" not in str(sent)

    run(test())


def gzipped(asked: Asked) -> bytes:
    return gzip.decompress(asked.body) if asked.header("content-encoding") == ["gzip"] else asked.body


def test_a_full_disk_costs_lines_and_no_requests(tmp_path: Path) -> None:
    async def test() -> None:
        (tmp_path / "log").symlink_to("/dev/full")
        async with scripted_arm(answers(b"ok")) as a, routing(tmp_path, policy_text(a)) as router:
            for _ in range(20):
                assert (await ask(router.port, request())).status == 200
            log = router.control.router.log
            while log.dropped < 20:
                await asyncio.sleep(0.01)

    run(test())


@pytest.mark.parametrize("taken", ["--port", "--admin-port"])
def test_a_port_that_is_taken_ends_the_router_with_one_clear_line(tmp_path: Path, taken: str) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text(
        'experiment: e\nbaseline: a\narms: {a: {url: "http://127.0.0.1:9"}}\n'
        'split: {key: "header:x-user-id", weights: {a: 100}}\n'
    )
    with socket.create_server(("127.0.0.1", 0)) as other:
        ports = {"--port": 0, "--admin-port": 0} | {taken: other.getsockname()[1]}
        line = [sys.executable, "-m", "serve", "router", str(policy), "--state", str(tmp_path / "state")]
        line += [word for name, port in ports.items() for word in (name, str(port))]
        done = subprocess.run(line, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 1
    (error,) = done.stderr.splitlines()
    assert f"Address already in use; name another {taken}" in error
