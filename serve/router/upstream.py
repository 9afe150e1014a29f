"""One keep-alive connection to an arm. It carries one exchange at a time and parses the answers."""

from __future__ import annotations

import asyncio
from typing import Protocol, cast

import httptools

from serve.router.head import Request
from serve.router.messages import named_by_connection

HIGH_WATER = 65_536  # bytes that wait to be sent before the other side is asked to pause
MAX_HEAD = 65_536
MOST_IDLE = 256  # connections kept to an arm; a burst's others are closed


class Pool(Protocol):
    """An arm: where it is, its idle connections, and the headers of its answers that are not passed on."""

    host: str
    port: int
    dropped: frozenset[bytes]
    idle: list[Upstream]


class Asker(Protocol):
    """An exchange: what a connection tells it."""

    request: Request
    sent: bool  # the whole request

    def connected(self) -> None: ...
    def congested(self) -> None: ...
    def relieved(self) -> None: ...
    def lost(self, why: str) -> None: ...
    def answer_head(
        self, status: int, lines: list[bytes], length: bytes | None, event_stream: bool
    ) -> None: ...
    def answer_body(self, data: bytes) -> None: ...
    def answer_end(self) -> None: ...
    def flush(self) -> None: ...


class Upstream(asyncio.Protocol):
    """Tells its exchange: head, body, end, or lost. Idle ones lie in their arm's `idle`."""

    __slots__ = (
        "arm",
        "complete",
        "connecting",
        "exchange",
        "fields",
        "head_bytes",
        "headed",
        "keep",
        "parser",
        "reused",
        "spoiled",
        "transport",
        "unsent",
        "until_close",
    )

    def __init__(self, arm: Pool, exchange: Asker) -> None:
        self.arm = arm
        self.exchange: Asker | None = exchange
        self.transport: asyncio.Transport | None = None
        self.unsent: list[bytes] = []
        self.parser = httptools.HttpResponseParser(self)
        self.reused = False
        self._expect()
        self.connecting: asyncio.Task[None] | None = asyncio.get_running_loop().create_task(self._connect())

    def reuse(self, exchange: Asker) -> None:
        """Takes the next exchange."""
        self.exchange = exchange
        self.reused = True
        self._expect()

    def send(self, data: bytes) -> None:
        """Takes a piece of the request; `forward` sends what has gathered in one write."""
        self.unsent.append(data)

    def forward(self) -> None:
        """Sends now, or as soon as the connection stands."""
        if self.transport and self.unsent:
            self.transport.write(b"".join(self.unsent))
            self.unsent.clear()

    def pause(self) -> None:
        """The client does not keep up."""
        if self.transport:
            self.transport.pause_reading()

    def resume(self) -> None:
        if self.transport:
            self.transport.resume_reading()

    def close(self) -> None:
        """Drops the connection; the arm stops working on what it carried. The exchange hears nothing more."""
        self.exchange = None
        if self.connecting:
            self.connecting.cancel()
        if self.transport:
            self.transport.abort()

    def _expect(self) -> None:
        self.fields: list[tuple[bytes, bytes, bytes]] = []  # name in lower case, name, value
        self.complete = False
        self.head_bytes = 0
        self.headed = False
        self.keep = False
        self.until_close = False
        self.spoiled = False

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            await loop.create_connection(lambda: self, self.arm.host, self.arm.port)
        except OSError:
            self._lost("connect")

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass
        if self.exchange is None:
            transport.abort()
            return
        self.transport, self.connecting = transport, None
        transport.set_write_buffer_limits(HIGH_WATER)
        self.forward()
        self.exchange.connected()

    def data_received(self, data: bytes) -> None:
        exchange = self.exchange
        if exchange is None:
            self._drop()  # an arm that speaks unasked
            return
        try:
            self.parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._lost("garbage")
        else:
            self.head_bytes += 0 if self.headed else len(data)
            if self.exchange is None:
                return  # the head was reason enough to ask another arm
            if self.complete:
                self._finish()
            elif self.head_bytes > MAX_HEAD:
                self._lost("garbage")
        exchange.flush()

    def connection_lost(self, error: Exception | None) -> None:
        exchange = self.exchange
        self._drop()
        del self.parser  # it refers back
        if exchange and self.headed and self.until_close and not error:
            self.exchange = None
            exchange.answer_end()
            exchange.flush()
        elif exchange:
            self._lost("reset")
            exchange.flush()

    def pause_writing(self) -> None:
        if self.exchange:
            self.exchange.congested()

    def resume_writing(self) -> None:
        if self.exchange:
            self.exchange.relieved()

    # httptools

    def on_message_begin(self) -> None:
        self.spoiled = self.complete  # more than was asked for

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.headed:  # what follows a body are trailers
            self.fields.append((name.lower(), name, value))

    def on_headers_complete(self) -> None:
        status = self.parser.get_status_code()
        if self.exchange is None or self.spoiled or status < 200:
            return
        self.headed = True
        drop = self.arm.dropped
        found: dict[bytes, bytes] = {}
        for lower, _, value in self.fields:
            if lower == b"connection":
                drop = drop | named_by_connection(value)
            elif lower in (b"content-length", b"content-type", b"transfer-encoding"):
                found[lower] = value
        lines = [name + b": " + value + b"\r\n" for lower, name, value in self.fields if lower not in drop]
        self.fields = []
        chunked = b"transfer-encoding" in found
        length = None if chunked else found.get(b"content-length")
        self.until_close = length is None and not chunked
        event_stream = found.get(b"content-type", b"").lower().startswith(b"text/event-stream")
        self.exchange.answer_head(status, lines, length, event_stream)
        if self.exchange.request.method == b"HEAD":
            self.complete = self.spoiled = True  # no body follows, which the parser cannot know

    def on_body(self, data: bytes) -> None:
        if self.exchange and not self.complete:
            self.exchange.answer_body(data)

    def on_message_complete(self) -> None:
        if self.headed:
            self.complete = True
            self.keep = self.parser.should_keep_alive()  # asked later, it has forgotten
        else:  # an informational answer; the real one follows
            self.fields.clear()

    def _finish(self) -> None:
        exchange, self.exchange = self.exchange, None
        assert exchange
        if self.keep and not self.spoiled and exchange.sent and len(self.arm.idle) < MOST_IDLE:
            self.arm.idle.append(self)
        else:
            self._drop()
        exchange.answer_end()

    def _lost(self, why: str) -> None:
        exchange = self.exchange
        self.close()
        if exchange:
            exchange.lost(why)

    def _drop(self) -> None:
        if self in self.arm.idle:
            self.arm.idle.remove(self)
        if self.transport:
            self.transport.abort()
