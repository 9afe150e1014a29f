"""Clients in one process: requests one after the other on each connection, or many streams held at once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import cast

PROMPT = b'{"model":"m","messages":[{"role":"user","content":"%b"}]}' % (b"What is in this picture? " * 8)
AT_ONCE = 200  # connections being opened; a listener's queue is finite


def request(user: int, extra: bytes = b"") -> bytes:
    """A chat completion as an SDK sends it."""
    return (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: router\r\nAccept: application/json\r\n"
        b"Content-Type: application/json\r\nUser-Agent: bench\r\nAuthorization: Bearer sk-bench\r\n"
        b"X-User-Id: user-%d\r\n%bContent-Length: %d\r\n\r\n%b" % (user, extra, len(PROMPT), PROMPT)
    )


class Repeat(asyncio.Protocol):
    """Asks, waits for the whole answer, asks again."""

    def __init__(self, user: int, times: int, seconds: list[float], done: asyncio.Future[None]) -> None:
        self.data, self.left, self.seconds, self.done = request(user), times, seconds, done
        self.answer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.ask()

    def ask(self) -> None:
        self.answer = b""
        self.began = time.perf_counter()
        self.transport.write(self.data)

    def data_received(self, data: bytes) -> None:
        self.answer += data
        if not self.answer.endswith((b"}}", b"}}\r\n0\r\n\r\n")):
            return
        self.seconds.append(time.perf_counter() - self.began)
        if not self.answer.startswith(b"HTTP/1.1 200"):
            self.end(RuntimeError(self.answer[:200].decode("latin-1")))
            return
        self.left -= 1
        if self.left:
            self.ask()
        else:
            self.end(None)

    def connection_lost(self, error: Exception | None) -> None:
        self.end(ConnectionError("the connection was closed before the answer"))

    def end(self, error: Exception | None) -> None:
        if self.done.done():
            return
        if error:
            self.done.set_exception(error)
        else:
            self.done.set_result(None)
        self.transport.close()


async def repeat(port: int, connections: int, times: int) -> list[float]:
    """Seconds of every request. Raises RuntimeError or ConnectionError on an answer that is not one."""
    loop = asyncio.get_running_loop()
    seconds: list[float] = []
    ends = []
    for user in range(connections):
        ends.append(done := loop.create_future())
        await loop.create_connection(
            lambda user=user, done=done: Repeat(user, times, seconds, done),  # type: ignore[misc]
            "127.0.0.1",
            port,
        )
    await asyncio.gather(*ends)
    return seconds


@dataclass
class Streams:
    """How many streams have begun, and how many have ended whole."""

    begun: int = 0
    whole: int = 0
    lost: int = 0
    all_begun: asyncio.Event = field(default_factory=asyncio.Event)


class Stream(asyncio.Protocol):
    """Asks once and counts events."""

    def __init__(
        self, data: bytes, count: int, streams: Streams, wanted: int, ended: Callable[[], None]
    ) -> None:
        self.data, self.left, self.streams, self.wanted, self.ended = data, count, streams, wanted, ended
        self.unread = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.write(self.data)
        self.fresh = True

    def data_received(self, data: bytes) -> None:
        if self.fresh:
            self.fresh = False
            self.streams.begun += 1
            if self.streams.begun == self.wanted:
                self.streams.all_begun.set()
        data = self.unread + data
        self.left -= data.count(b"data: ")
        self.unread = data[-5:]  # too short for an event to be counted twice
        if self.unread == b"0\r\n\r\n":
            self.streams.whole += self.left == 0
            self.left = 0
            self.transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        self.streams.lost += self.left != 0
        self.ended()


async def hold(
    port: int, wanted: int, events: int, seconds: float, held: Callable[[], Awaitable[None]]
) -> Streams:
    """Opens streams, calls `held` when all have begun, and waits for their ends."""
    loop = asyncio.get_running_loop()
    streams, open_ = Streams(), wanted
    over = asyncio.Event()

    def ended() -> None:
        nonlocal open_
        open_ -= 1
        if not open_:
            over.set()

    opening = asyncio.Semaphore(AT_ONCE)

    async def one(user: int) -> None:
        data = request(user, b"X-Events: %d/%g\r\n" % (events, seconds))
        async with opening:
            await loop.create_connection(
                lambda: Stream(data, events, streams, wanted, ended), "127.0.0.1", port
            )

    await asyncio.gather(*(one(user) for user in range(wanted)))
    async with asyncio.timeout(events * seconds + 120):
        begun = asyncio.create_task(streams.all_begun.wait())
        await asyncio.wait({begun, asyncio.create_task(over.wait())}, return_when=asyncio.FIRST_COMPLETED)
        begun.cancel()
        await held()
        await over.wait()
    return streams
