"""One client connection on the traffic port: strict requests in, one at a time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import cast

import httptools

from engines.errors import UserError
from serve.router.assignment import user_of
from serve.router.exchange import Exchange
from serve.router.head import REQUEST_ID, Head, Request, check_body
from serve.router.live import Live
from serve.router.messages import RefusedError, answer, error_body
from serve.router.mirror import mirror
from serve.router.record import Record
from serve.router.router import Router
from serve.router.upstream import HIGH_WATER

LINGER_S = 2.0  # who still sends gets to read why it was refused, before the connection is cut
OWN = (b"/health", b"/ready")  # answered by the router itself


class Client(asyncio.Protocol):
    """Turns what comes in into an exchange; refuses all that is not plain HTTP/1.1."""

    __slots__ = (
        "_address",
        "_body",
        "_exchange",
        "_head",
        "_live",
        "_overhead",
        "_parser",
        "_pipelined",
        "_record",
        "_request",
        "_router",
        "_size",
        "_stalled",
        "_state",
        "_transport",
        "deadline",
        "on_header",
    )

    def __init__(self, router: Router) -> None:
        self._router = router
        self._live: Live = router.live
        self._parser: httptools.HttpRequestParser | None = None  # only while a request comes: it is large
        self.on_header: Callable[[bytes, bytes], None] | None = None
        self._transport: asyncio.Transport
        self._state = "idle"  # then head, then body until the answer is whole; or refused
        self._pipelined = False
        self._stalled = False  # does not take what is written
        self._size = 0  # of the body
        self._overhead = 0  # bytes since the last piece of a body: the head, trailers, sizes of chunks
        self._body: list[bytes] | None = None  # gathered where `user` decides
        self._head: Head | None = None
        self._request: Request | None = None
        self._record: Record | None = None
        self._exchange: Exchange | None = None
        self.deadline = 0.0

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass
        self._transport = transport
        peer = transport.get_extra_info("peername")  # None when it has left already
        self._address = peer[0].removeprefix("::ffff:") if peer else ""
        transport.set_write_buffer_limits(HIGH_WATER)
        limits, router = self._live.policy.limits, self._router
        self._due(limits.header_s)
        if peer and len(router.watched) < min(limits.connections, router.room):
            router.watched[self] = None
        else:
            router.metrics.turned_away()
            transport.abort()

    def data_received(self, data: bytes) -> None:
        if self._state == "refused":
            return
        if self._state == "idle":
            self._begin_head()
        self._overhead += len(data)
        try:
            if self._parser:
                self._parser.feed_data(data)
            elif data.strip(b"\r\n"):  # empty lines after a request are ignored
                self.on_message_begin()
        except RefusedError as refused:
            self._refuse(refused)
        except httptools.HttpParserError as error:
            cause = error.__context__ or RefusedError(400, f"not HTTP/1.1: {error}")
            if not isinstance(cause, RefusedError):
                raise cause from None
            self._refuse(cause)
        else:
            if self._overhead > self._live.policy.limits.header_bytes:
                self._refuse(RefusedError(431, "the request's head is too large"))
        if self._exchange:
            self._exchange.forward()

    def connection_lost(self, error: Exception | None) -> None:
        self._router.watched.pop(self, None)
        self._state = "refused"
        self._parser = self.on_header = None  # it refers back
        if self._exchange:
            self._exchange.client_lost()
            self._exchange = None

    def pause_writing(self) -> None:
        self._stalled = True
        if self._exchange:
            self._exchange.client_full()
        self._due(self._live.policy.limits.stall_s)

    def resume_writing(self) -> None:
        self._stalled = False
        if self._exchange:
            self._exchange.client_ready()

    def _begin_head(self) -> None:
        self._state = "head"
        self._overhead = 0
        self._live = self._router.live
        self._head = head = Head(self._live.noted)
        self.on_header = head.add  # straight there: no other is called as often
        self._parser = httptools.HttpRequestParser(self)
        self._due(self._live.policy.limits.header_s)

    # httptools

    def on_message_begin(self) -> None:
        if self._state != "head":
            self._pipelined = True
            raise RefusedError(
                400, "a request came before the answer to the one before; pipelining is refused"
            )

    def on_url(self, target: bytes) -> None:
        assert self._head
        self._head.target += target

    def on_headers_complete(self) -> None:
        live, parser, head = self._live, self._parser, self._head
        assert parser
        assert head
        self._state = "body"
        self._size = 0
        self._body = [] if live.assign.reads_user else None
        method = parser.get_method()
        self._record = live.record(self._address, method, head.target, head.seen.get(REQUEST_ID, b""))
        if parser.should_upgrade():
            raise RefusedError(400, "upgrades are refused")
        keep_alive = parser.should_keep_alive() and not self._router.closing
        self._request = head.request(method, parser.get_http_version(), keep_alive, live.policy.limits)
        if b"expect" in head.seen:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if self._body is None and head.target not in OWN:
            self._begin(None)

    def on_body(self, data: bytes) -> None:
        limits = self._live.policy.limits
        record = self._exchange.record if self._exchange else self._record
        if not self._size and record:
            record.request_piece(data)
        self._overhead = 0
        self._size += len(data)
        check_body(self._size, limits, gathered=self._body is not None)
        if self._exchange:
            self._exchange.body(data)
        elif self._body is not None:
            self._body.append(data)
            self._due(limits.stall_s)

    def on_message_complete(self) -> None:
        self._parser = self.on_header = None
        if self._head and self._head.target in OWN:
            self._answer_own(self._head.target)
        elif self._head and self._body is not None:
            body, self._body = b"".join(self._body), None
            self._begin(user_of(body))
            if self._exchange and body:
                self._exchange.body(body)
        if self._exchange:
            copied = self._exchange.kept
            self._exchange.end_of_request()
            if copied is not None and self._live.mirrors():
                mirror(self._router, self._exchange, copied)

    def _begin(self, user: str | None) -> None:
        live, record, head, request = self._live, self._record, self._head, self._request
        assert record
        assert head
        assert request
        try:
            assignment = live.assign(head.seen, self._address, user)
        except UserError as error:
            raise RefusedError(400, str(error)) from None
        self._head = self._request = self._record = None
        record.assigned, record.reason, record.key = assignment
        self._exchange = Exchange(self, live, record, request, live.turns[assignment.arm])
        self._exchange.start()

    def _answer_own(self, target: bytes) -> None:
        self._transport.write(self._live.own_answer(target))
        self._head = self._record = None
        self._next()

    # exchange.Sink

    def write(self, data: bytes) -> None:
        self._transport.write(data)

    def pause(self) -> None:
        if not self._transport.is_closing():
            self._transport.pause_reading()

    def resume(self) -> None:
        if not self._transport.is_closing():
            self._transport.resume_reading()

    def done(self) -> None:
        exchange, self._exchange = self._exchange, None
        assert exchange
        if self._pipelined:
            self._refuse(RefusedError(400, "pipelining is refused"))
        elif not exchange.sent:
            self._linger()
        elif exchange.request.keep_alive:
            self._next()
        else:
            self._transport.close()

    def fail(self, status: int, message: str) -> None:
        self._exchange = None
        self._transport.write(answer(status, error_body(status, message), close=True))
        self._linger()

    def abort(self) -> None:
        self._exchange = None
        self._transport.abort()

    # router.Watched

    @property
    def busy(self) -> bool:
        return self._state in ("head", "body")

    def expire(self) -> None:
        """The deadline has passed."""
        if self._state == "refused" or self._stalled:
            self._transport.abort()
        elif self._exchange and self._exchange.waiting != "body":
            self._exchange.expire()
        elif self._state == "idle":
            self._transport.close()
        else:
            self._refuse(RefusedError(408, "the request did not come in time"))

    def cut(self) -> None:
        """The router ends."""
        self._transport.abort()

    def _next(self) -> None:
        self._state = "idle"
        self._due(self._live.policy.limits.keepalive_s)

    def _refuse(self, refused: RefusedError) -> None:
        exchange, self._exchange = self._exchange, None
        if exchange and self._pipelined:
            self._exchange = exchange  # the one before is answered first
            self.pause()
            return
        if exchange and exchange.answered:
            exchange.client_lost(refused.status)
            self._transport.abort()
            return
        if exchange:
            exchange.client_lost(refused.status)
        else:
            record = self._record or self._live.record(self._address, b"", b"")
            record.status, record.error, record.ended = refused.status, "refused", time.monotonic()
            self._live.observe(record)
        self.fail(refused.status, str(refused))

    def _linger(self) -> None:
        """Ends the connection after what was written; what still comes is thrown away for a while."""
        self._state = "refused"
        self._transport.write_eof()
        self.resume()
        self._due(LINGER_S)

    def _due(self, seconds: float) -> None:
        self.deadline = time.monotonic() + seconds
