"""Hostile clients: all that two servers could read in two ways is refused, and nothing waits forever."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import h11
import pytest

from serve.router.run import Running
from tests.scripted_arm import (
    LAST,
    STREAM,
    Asked,
    ScriptedArm,
    answers,
    ask,
    event,
    listening,
    policy_text,
    read_answer,
    request,
    routing,
    scripted_arm,
    whole,
)
from tests.test_router import log_lines, run

LIMITS = (
    "limits: {header_bytes: 4096, body_bytes: 100000, header_s: 0.5, stall_s: 0.5, keepalive_s: 1, "
    "connections: 50}\n"
)
POST = b"POST / HTTP/1.1\r\nHost: r\r\n"
GET = b"GET / HTTP/1.1\r\nHost: r\r\n"


@asynccontextmanager
async def hosting(folder: Path) -> AsyncIterator[tuple[ScriptedArm, Running]]:
    async with scripted_arm(answers(b"ok")) as arm, routing(folder, policy_text(arm, more=LIMITS)) as router:
        yield arm, router


async def say(port: int, data: bytes) -> bytes:
    """Everything that is answered until the router closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    answer = b""
    with suppress(ConnectionResetError):
        while piece := await reader.read(65536):
            answer += piece
    writer.close()
    return answer


@pytest.mark.parametrize(
    ("data", "status"),
    [
        # request smuggling
        (POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (POST + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n", 400),
        (POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef", 400),
        (POST + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nabcde", 400),
        (POST + b"Content-Length: 5, 5\r\n\r\nabcde", 400),
        (POST + b"Content-Length: +5\r\n\r\nabcde", 400),
        (POST + b"Content-Length: -5\r\n\r\nabcde", 400),
        (POST + b"Content-Length: 0x5\r\n\r\nabcde", 400),
        (POST + b"Content-Length: 5 5\r\n\r\nabcde", 400),
        (POST + b"Content-Length: 99999999999999999999999\r\n\r\n", 400),
        (POST + b"Content-Length : 5\r\n\r\nabcde", 400),
        (POST + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n", 400),
        (POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 400),
        (POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 400),
        (POST + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n", 400),
        (POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (POST + b"Transfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n", 400),
        (b"POST / HTTP/1.0\r\nHost: r\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        # chunks
        (POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n\r\n", 400),
        (POST + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n\r\n", 400),
        (POST + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n0\r\n\r\n", 400),
        (POST + b"Transfer-Encoding: chunked\r\n\r\n3\nabc\n0\n\n", 400),
        (POST + b"Transfer-Encoding: chunked\r\n\r\n3;a\nb\r\nabc\r\n0\r\n\r\n", 400),
        (POST + b"Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n", 400),
        (POST + b"Transfer-Encoding: chunked\r\n\r\n1;" + b"x" * 9000, 431),
        (POST + b"Transfer-Encoding: chunked\r\n\r\n0\r\nx: " + b"y" * 9000, 431),
        # heads
        (b"GET / HTTP/1.1\nHost: r\n\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (GET + b"Host: s\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a@b\r\n\r\n", 400),
        (GET + b"X: a\r\n folded\r\n\r\n", 400),
        (GET + b"X: a\x00b\r\n\r\n", 400),
        (GET + b"X: a\rb\r\n\r\n", 400),
        (GET + b"X: a\nb: c\r\n\r\n", 400),
        (GET + b"X y: a\r\n\r\n", 400),
        (GET + b"no colon\r\n\r\n", 400),
        (GET + b": no name\r\n\r\n", 400),
        (b"GET /\x7f HTTP/1.1\r\nHost: r\r\n\r\n", 400),
        (b"GET /\xff HTTP/1.1\r\nHost: r\r\n\r\n", 400),
        (b"GET /a b HTTP/1.1\r\nHost: r\r\n\r\n", 400),
        (b"GET http://other/ HTTP/1.1\r\nHost: r\r\n\r\n", 400),
        (b"OPTIONS * HTTP/1.1\r\nHost: r\r\n\r\n", 400),
        (b"CONNECT other:80 HTTP/1.1\r\nHost: r\r\n\r\n", 400),
        (GET + b"Connection: upgrade\r\nUpgrade: websocket\r\n\r\n", 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (b"GET /\r\n\r\n", 400),
        (b"FOO / HTTP/1.1\r\nHost: r\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
        (POST + b"Expect: 200-maybe\r\nContent-Length: 0\r\n\r\n", 417),
        # sizes
        (GET + b"X: " + b"y" * 5000 + b"\r\n\r\n", 431),
        (GET + b"X: " + b"y" * 100_000, 431),
        (b"GET /" + b"y" * 100_000, 431),
        (GET + b"x: y\r\n" * 5000, 431),
        (POST + b"Content-Length: 100001\r\n\r\n", 413),
        (
            POST + b"Transfer-Encoding: chunked\r\n\r\n" + b"2710\r\n" + b"x" * 10_000,
            408,
        ),
        # time
        (b"GET / HT", 408),
        (GET + b"X: slow", 408),
        (POST + b"Content-Length: 10\r\n\r\nabc", 408),
        (POST + b"Transfer-Encoding: chunked\r\n\r\n3\r\nab", 408),
    ],
)
def test_refused(data: bytes, status: int, tmp_path: Path) -> None:
    async def test() -> None:
        async with hosting(tmp_path) as (arm, router):
            answer = await say(router.port, data)
            assert answer.startswith(b"HTTP/1.1 %d " % status), answer[:200]
            assert answer.count(b"HTTP/1.1 ") == 1
            assert b"connection: close" in answer
            assert not arm.asked, "nothing whole reached an arm"
            assert (await ask(router.port, request())).status == 200

    run(test())
    statuses = [line["http.response.status_code"] for line in log_lines(tmp_path)]
    assert statuses == [status, 200]


def test_a_body_in_chunks_is_held_to_the_limit(tmp_path: Path) -> None:
    async def test() -> None:
        async with hosting(tmp_path) as (arm, router):
            chunks = (b"2710\r\n" + b"x" * 10_000 + b"\r\n") * 200
            answer = await say(router.port, POST + b"Transfer-Encoding: chunked\r\n\r\n" + chunks)
            assert answer.startswith(b"HTTP/1.1 413 ")
            assert not arm.asked

    run(test())
    assert len(log_lines(tmp_path)) == 1, "what comes after the refusal is thrown away"


def test_a_body_whose_user_must_be_read_is_held_to_the_buffer(tmp_path: Path) -> None:
    async def test() -> None:
        more = "limits: {buffer_bytes: 1000}\n"
        async with scripted_arm(answers(b"ok")) as arm:
            text = policy_text(arm, more=more).replace("header:x-user-id", "user")
            async with routing(tmp_path, text) as router:
                assert (await ask(router.port, request(b"x" * 1000))).status == 200
                assert (await ask(router.port, request(b"x" * 1001))).status == 413
                assert len(arm.asked) == 1

    run(test())


def test_pipelining_is_refused_after_the_first_answer(tmp_path: Path) -> None:
    async def test() -> None:
        async with hosting(tmp_path) as (arm, router):
            answer = await say(router.port, request(b"one") + request(b"two") + request(b"three"))
            assert answer.startswith(b"HTTP/1.1 200 ")
            assert answer.count(b"HTTP/1.1 ") == 2
            assert b"HTTP/1.1 400 " in answer
            assert [asked.body for asked in arm.asked] == [b"one"]

    run(test())


def test_a_request_that_comes_while_one_is_answered_is_refused(tmp_path: Path) -> None:
    """Empty lines, which old clients send after a body, are not one."""

    async def test() -> None:
        go = asyncio.Event()

        async def script(asked: Asked, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await go.wait()
            writer.write(whole(b"ok"))

        async with scripted_arm(script) as arm, routing(tmp_path, policy_text(arm, more=LIMITS)) as router:
            for more, answers in ((b"\r\n\r\n", 1), (b"\r\n" + GET + b"\r\n", 2)):
                reader, writer = await asyncio.open_connection("127.0.0.1", router.port)
                writer.write(request())
                while not router.control.router.live.arms["a"].in_flight:
                    await asyncio.sleep(0.01)
                writer.write(more)
                await writer.drain()
                await ask(router.port, b"GET /health HTTP/1.1\r\nHost: r\r\n\r\n")  # until it has read that
                go.set()
                assert (await read_answer(reader)).body == b"ok"
                if answers == 2:
                    assert (await read_answer(reader)).status == 400
                    assert await reader.read() == b""
                writer.close()
                go.clear()
            assert len(arm.asked) == 2

    run(test())


def test_requests_one_after_the_other_share_a_connection(tmp_path: Path) -> None:
    async def test() -> None:
        async with hosting(tmp_path) as (_, router):
            reader, writer = await asyncio.open_connection("127.0.0.1", router.port)
            for number in range(20):
                data = request(str(number).encode())
                writer.write(data[: number * 5])
                await asyncio.sleep(0)
                writer.write(data[number * 5 :])
                assert (await read_answer(reader)).body == b"ok"
            writer.close()

    run(test())


def test_expect_continue_is_answered(tmp_path: Path) -> None:
    async def test() -> None:
        async with hosting(tmp_path) as (arm, router):
            reader, writer = await asyncio.open_connection("127.0.0.1", router.port)
            writer.write(POST + b"Content-Length: 2\r\nExpect: 100-continue\r\n\r\n")
            assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            writer.write(b"hi")
            assert (await read_answer(reader)).status == 200
            assert arm.asked[0].body == b"hi"
            writer.close()

    run(test())


def test_a_slow_head_is_not_kept_alive_by_drops(tmp_path: Path) -> None:
    """A byte at a time, each sooner than the limit: the limit is on the whole head."""

    async def test() -> None:
        async with hosting(tmp_path) as (_, router):
            reader, writer = await asyncio.open_connection("127.0.0.1", router.port)
            answer = asyncio.create_task(reader.read())
            for byte in GET * 100:
                if answer.done():
                    break
                writer.write(bytes([byte]))
                await asyncio.sleep(0.05)
            assert (await answer).startswith(b"HTTP/1.1 408 ")
            writer.close()

    run(test())


def test_a_slow_head_is_refused_on_a_kept_connection_too(tmp_path: Path) -> None:
    async def test() -> None:
        limits = LIMITS.replace("keepalive_s: 1,", "keepalive_s: 1000,")
        async with (
            scripted_arm(answers(b"ok")) as arm,
            routing(tmp_path, policy_text(arm, more=limits)) as router,
        ):
            reader, writer = await asyncio.open_connection("127.0.0.1", router.port)
            writer.write(request())
            assert (await read_answer(reader)).status == 200
            writer.write(b"GET / HT")
            assert (await read_answer(reader)).status == 408
            writer.close()

    run(test())


def test_a_client_that_does_not_read_is_dropped(tmp_path: Path) -> None:
    async def test() -> None:
        async def script(asked: Asked, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(STREAM)
            for _ in range(2000):
                writer.write(event("x" * 60_000))
                await writer.drain()
            writer.write(LAST)

        async with scripted_arm(script) as arm, routing(tmp_path, policy_text(arm, more=LIMITS)) as router:
            _, writer = await asyncio.open_connection("127.0.0.1", router.port)
            writer.write(request())
            await arm.left.wait()
            writer.transport.abort()

    run(test())


def test_connections_beyond_the_limit_are_closed(tmp_path: Path) -> None:
    async def test() -> None:
        async with hosting(tmp_path) as (_, router):
            held = [await asyncio.open_connection("127.0.0.1", router.port) for _ in range(50)]
            while len(router.control.router.watched) < 50:
                await asyncio.sleep(0.01)
            reader, writer = await asyncio.open_connection("127.0.0.1", router.port)
            with suppress(ConnectionResetError):
                assert await reader.read() == b""
            text = router.control.router.metrics.text({}, 1, 0)
            assert 'router_errors_total{arm="",mirror="false",type="too_many_connections"} 1' in text
            for _, other in (*held, (reader, writer)):
                other.close()

    run(test())


@pytest.mark.parametrize("key", ["header:x-user-id", "user"])
def test_user_ids_inject_nothing(key: str, tmp_path: Path) -> None:
    """Line ends in a user id reach neither a header, nor the log, nor the metrics."""
    body = b'{"user": "u\\r\\nx-evil: 1\\u2028\\"}"}'

    async def test() -> None:
        async with scripted_arm(answers(b"ok")) as arm:
            text = policy_text(arm).replace("header:x-user-id", key)
            async with routing(tmp_path, text) as router:
                answer = await ask(router.port, request(body, X_User_Id='u"}%0d%0ax-evil: 1\xff'))
                assert answer.status == 200
                assert not answer.header("x-evil")
                assert not arm.asked[0].header("x-evil")
                assert arm.asked[0].body == body

    run(test())
    (line,) = log_lines(tmp_path)
    assert "evil" not in str(line)


HASTY = "health: {interval_s: 999}\nlimits: {header_s: 1, stall_s: 1, keepalive_s: 0.5, header_bytes: 4096}\n"
SEEDS = (
    request(b'{"model": "m"}', X_User_Id="u1", Accept="*/*"),
    POST
    + b"Transfer-Encoding: chunked\r\nConnection: close, x-a\r\nX-A: b\r\n\r\n"
    + b"3\r\nabc\r\n2;e=1\r\nde\r\n0\r\n\r\n",
    GET + b"\r\n",
    POST + b"Expect: 100-continue\r\nContent-Length: 3\r\n\r\nabc",
)
PARTS = (
    *(
        b"\r\n",
        b"\n",
        b"\r",
        b"\x00",
        b" ",
        b"\t",
        b":",
        b",",
        b";",
        b"\xff",
        b"0",
        b"5",
        b"chunked",
        b"identity",
    ),
    *(
        b"Content-Length: 3\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"HTTP/1.0",
        b"\r\n\r\n",
        GET,
        b"0\r\n\r\n",
    ),
)


def mutant(draw: random.Random) -> bytes:
    data = bytearray(draw.choice(SEEDS))
    for _ in range(draw.randint(1, 3)):
        place = draw.randrange(len(data))
        match draw.randrange(4):
            case 0:
                data[place:place] = draw.choice(PARTS)
            case 1:
                del data[place : place + draw.randint(1, 8)]
            case 2:
                data[place] = draw.randrange(256)
            case _:
                other = draw.randrange(len(data))
                data[place:place] = data[other : other + draw.randint(1, 40)]
    return bytes(data)


def test_what_reaches_an_arm_has_one_reading(tmp_path: Path) -> None:
    """Mutated requests: whatever is passed on, another strict parser (h11) reads as whole requests."""
    spoiled: list[bytes] = []
    heard = 0

    async def arm(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal heard
        parser, raw = h11.Connection(h11.SERVER), b""
        try:
            while True:
                got = parser.next_event()
                if got is h11.NEED_DATA:
                    data = await reader.read(65536)
                    raw += data
                    if not data:
                        break
                    parser.receive_data(data)
                elif isinstance(got, h11.EndOfMessage):
                    heard += 1
                    if parser.trailing_data[0]:
                        spoiled.append(raw)
                    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
                    parser, raw = h11.Connection(h11.SERVER), b""
        except h11.RemoteProtocolError:
            spoiled.append(raw)

    async def test() -> None:
        draw = random.Random(6)
        async with (
            listening(arm) as port,
            routing(tmp_path, policy_text(ScriptedArm(port), more=HASTY)) as router,
        ):
            for _ in range(4):
                mutants = [mutant(draw) for _ in range(400)]
                got = await asyncio.gather(*(say(router.port, data) for data in mutants))
                for data, answer in zip(mutants, got, strict=True):
                    assert answer == b"" or answer.startswith(b"HTTP/1.1 "), (data, answer)
                    assert b"HTTP/1.1 5" not in answer, (data, answer)

    run(test())
    assert heard > 100, "many mutants are requests still"
    assert not spoiled
