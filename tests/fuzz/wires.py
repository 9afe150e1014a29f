"""The router's ports as functions of bytes: what a client sends, what an arm answers, what an admin asks.

Whatever comes in, each side gets only what a second reader of HTTP, h11, reads as whole messages.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import cache
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import h11
from pydantic_core import to_json

from serve.router.admin import Admin
from serve.router.client import Client
from serve.router.log import line
from serve.router.reading import parse_policy
from serve.router.router import Router
from serve.router.upstream import Upstream
from serve.router.versions import Change
from tests.scripted_arm import request, whole

POLICY = parse_policy(
    'experiment: e\nbaseline: b\narms: {b: {url: "http://127.0.0.1:9"}}\n'
    'split: {key: "header:x-user-id", weights: {b: 100}}\nlimits: {buffer_bytes: 1000, body_bytes: 5000}\n'
)
BY_USER = POLICY.model_copy(update={"split": POLICY.split.model_copy(update={"key": "user"})})
TURNS = 12  # of the loop, in which all that can follow has followed


class Wire(asyncio.Transport):
    """One end of a connection, whose other end is `hear`."""

    def __init__(self, protocol: asyncio.Protocol, hear: Callable[[bytes], None]) -> None:
        super().__init__({"peername": ("127.0.0.1", 1)})
        self._protocol, self._hear, self._closed = protocol, hear, False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not self._closed:
            self._hear(bytes(data))

    def close(self) -> None:
        self.abort()

    def abort(self) -> None:
        if not self._closed:
            self._closed = True
            asyncio.get_running_loop().call_soon(self._protocol.connection_lost, None)

    def is_closing(self) -> bool:
        return self._closed

    def write_eof(self) -> None: ...
    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...
    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...


class Reader:
    """h11 in a part; counts whole messages. RemoteProtocolError for what is none, or has one too many."""

    def __init__(self, role: type[h11.CLIENT] | type[h11.SERVER]) -> None:
        self.connection, self.whole = h11.Connection(role, max_incomplete_event_size=1 << 20), 0

    def feed(self, data: bytes) -> list[h11.Event]:
        self.connection.receive_data(data)
        found = []
        while isinstance(event := self.connection.next_event(), h11.Event):
            found.append(event)
            self.whole += isinstance(event, h11.EndOfMessage)
        return found


@cache
def loop() -> asyncio.AbstractEventLoop:
    return asyncio.new_event_loop()


def play(scene: Callable[[], Any]) -> None:
    """Runs it to its end on one loop; what breaks in a callback breaks out."""
    broken: list[dict[str, Any]] = []
    loop().set_exception_handler(lambda _, context: broken.append(context))
    loop().run_until_complete(scene())
    for context in broken:
        raise context.get("exception") or RuntimeError(context["message"])


@contextmanager
def router(policy: Any, answer: bytes) -> Iterator[Router]:
    """One whose arm answers every request so, at once."""
    found = Router(policy, 1, SimpleNamespace(write=lambda record: to_json(line(record, 0.0))))  # type: ignore[arg-type]

    async def connect(upstream: Upstream) -> None:
        arm = Reader(h11.SERVER)

        def hear(data: bytes) -> None:
            for event in arm.feed(data):
                if isinstance(event, h11.EndOfMessage):
                    asyncio.get_running_loop().call_soon(upstream.data_received, answer)
                    arm.connection = h11.Connection(h11.SERVER)  # one at a time: nothing else has come

        upstream.connection_made(Wire(upstream, hear))

    with patch.object(Upstream, "_connect", connect):
        yield found


async def converse(policy: Any, pieces: list[bytes], answer: bytes) -> bytes:
    """A client sends the pieces and stays a while: all that it got."""
    got = bytearray()
    with router(policy, answer) as served:
        client = Client(served)
        client.connection_made(Wire(client, got.extend))
        for piece in pieces:
            client.data_received(piece)
            for _ in range(TURNS):
                await asyncio.sleep(0)
        client.connection_lost(None)
        for _ in range(TURNS):
            await asyncio.sleep(0)
    for arm in served.live.arms.values():
        assert arm.in_flight == 0, "it is still counted as in flight"
        arm.retire()
    assert not served.watched
    return bytes(got)


def asked(content: bytes) -> None:
    """What a client sends, in three pieces. The arm gets whole requests, the client whole answers."""
    third = 1 + len(content) // 3
    pieces = [content[at : at + third] for at in range(0, len(content), third)]
    for policy in (POLICY, BY_USER):

        async def scene(policy: Any = policy) -> None:
            got = await converse(policy, pieces, whole(b"ok"))
            rest = got.replace(b"HTTP/1.1 100 Continue\r\n\r\n", b"")
            assert rest.count(b"HTTP/1.1 ") == rest.count(b"content-length: "), "an answer that is not whole"

        play(scene)


def answered(content: bytes) -> None:
    """What an arm answers. The client gets one answer, or the beginning of one; never a second."""

    async def scene() -> None:
        got = await converse(POLICY, [request()], content)
        client = Reader(h11.CLIENT)
        client.connection.send(h11.Request(method="POST", target="/", headers=[("host", "a")]))
        client.connection.send(h11.EndOfMessage())
        if got:
            client.feed(got)
        assert not client.connection.trailing_data[0], "more than one answer"

    play(scene)


def administered(content: bytes) -> None:
    """What comes in at the admin port gets an answer, whatever it is."""
    change = Change(1, 1, "put", "a", "", "")

    async def put(text: str, *_: object) -> Change:
        parse_policy(text)
        return change

    async def nothing(*_: object) -> Change:
        return change

    acts = dict.fromkeys(("start", "pause", "promote", "rollback"), nothing)
    control: Any = SimpleNamespace(router=None, put=put, go_back=nothing)
    rollout: Any = SimpleNamespace(**acts, figures=lambda: asdict(change))
    admin = Admin(control, rollout, SimpleNamespace(), "token")  # type: ignore[arg-type]

    async def scene() -> None:
        reader = asyncio.StreamReader()
        reader.feed_data(content)
        reader.feed_eof()
        assert (await admin._respond(reader, "::1")).startswith(b"HTTP/1.1 ")

    if b"/status" not in content and b"/metrics" not in content and b"GET /policy" not in content:
        play(scene)  # those three read nothing
