"""One request on its way: asks its arm, or the next one, and relays the answer as it comes."""

from __future__ import annotations

import time
from typing import Protocol

from serve.router.arm import Arm
from serve.router.attempts import Attempts
from serve.router.head import Request
from serve.router.live import Live
from serve.router.messages import LAST_CHUNK, chunk, error_event, status_line
from serve.router.record import Record
from serve.router.upstream import Upstream


class Sink(Protocol):
    """Who asked: a client on its connection or, for a mirrored request, nobody."""

    deadline: float  # on the monotonic clock; then `Exchange.expire` is called

    def write(self, data: bytes) -> None: ...
    def pause(self) -> None: ...
    def resume(self) -> None: ...
    def done(self) -> None:
        """The answer is whole."""

    def fail(self, status: int, message: str) -> None:
        """No answer was begun, and none will be."""

    def abort(self) -> None:
        """The answer cannot be ended properly."""


class Exchange:
    """Asks one arm after the other until one answers, and then no other."""

    __slots__ = (
        "_attempts",
        "_chunks",
        "_event_stream",
        "_out",
        "_room",
        "answered",
        "arm",
        "client",
        "kept",
        "live",
        "record",
        "request",
        "sent",
        "upstream",
        "waiting",
    )

    def __init__(
        self, client: Sink, live: Live, record: Record, request: Request, turns: tuple[Arm, ...]
    ) -> None:
        """`turns` are arms to ask, the assigned one first."""
        self.client = client
        self.live = live
        self.record = record
        self.request = request
        self.sent = False  # the whole request
        self.answered = False  # the client has the head of an answer
        self.arm: Arm | None = None  # where a request is in flight
        self.upstream: Upstream | None = None
        self.kept: list[bytes] | None = []  # of the body, framed, for another attempt
        self._room = live.policy.limits.buffer_bytes
        self._attempts = Attempts(turns, record, live.policy.retries)
        self._chunks = False  # the answer goes out in chunks
        self._event_stream = False
        self.waiting = ""  # connect, body, write, first_byte or idle
        self._out: list[bytes] = []

    # The request, as it comes from the client.

    def start(self) -> None:
        """Asks the first arm in turn that may be asked; where none may, the client gets a 503."""
        self.arm = self._attempts.take()
        if self.arm:
            self.arm.in_flight += 1
            self.record.attempts += 1
            self._connect()
        else:
            self._fail(503, "no arm can take the request now", self.record.fallback or "no_arm")

    def body(self, data: bytes) -> None:
        """A piece of the request's body."""
        self._send(chunk(data) if self.request.chunked else data)
        if self.waiting == "body":
            self._wait("body", self.live.policy.limits.stall_s)

    def end_of_request(self) -> None:
        """The request is whole."""
        if self.request.chunked:
            self._send(LAST_CHUNK)
        self.sent = True
        if self.waiting == "body":
            self._wait_on()

    def forward(self) -> None:
        """Sends on what has gathered of the request: its head and what came with it go together."""
        if self.upstream:
            self.upstream.forward()

    def client_lost(self, status: int = 499) -> None:
        """The client left, or broke the rules: closing the arm's connection tells it to stop."""
        if self.upstream:
            self.upstream.close()
        if self.arm and not self.answered:
            self.arm.breaker.abandon()
        self._close(status, "client_closed" if status == 499 else "client_error")

    def client_full(self) -> None:
        """The client does not take the answer as fast as it comes."""
        if self.upstream:
            self.upstream.pause()

    def client_ready(self) -> None:
        """It does again."""
        if self.upstream and self.arm:
            self.upstream.resume()
            self._wait("idle", self.arm.config.timeouts.idle_s)

    def expire(self) -> None:
        """The deadline has passed."""
        assert self.upstream
        assert self.arm
        self.upstream.close()
        if self.waiting == "first_byte":
            self._left_by(self.arm)
            self._fail(504, "the arm did not answer in time", "first_byte_timeout")
        else:
            self.lost(f"{self.waiting}_timeout")
        self.flush()

    def _connect(self, fresh: bool = False) -> None:
        assert self.arm
        arm, request = self.arm, self.request
        if arm.idle and not fresh:
            self.upstream = arm.idle.pop()
            self.upstream.reuse(self)
        else:
            self.upstream = Upstream(arm, self)
        self.upstream.send(b"".join((request.line, arm.host_line, request.fields, *(self.kept or ()))))
        if self.upstream.transport:
            self._wait_on()
        else:
            self.client.pause()
            self._wait("connect", arm.config.timeouts.connect_s)

    def _send(self, data: bytes) -> None:
        if self.kept is not None:
            self._room -= len(data)
            if self._room >= 0:
                self.kept.append(data)
            else:
                self.kept = None
        if self.upstream:
            self.upstream.send(data)

    # The connection to the arm.

    def connected(self) -> None:
        self.client.resume()
        self._wait_on()

    def congested(self) -> None:
        """The arm does not take the request as fast as it comes."""
        self.client.pause()
        if not self.answered and self.arm:
            self._wait("write", self.arm.config.timeouts.idle_s)

    def relieved(self) -> None:
        self.client.resume()
        if not self.answered:
            self._wait_on()

    def lost(self, why: str) -> None:
        """The connection broke, or what came over it is not HTTP."""
        arm, upstream = self.arm, self.upstream
        assert arm
        assert upstream
        if self.answered:
            arm.breaker.failure()
            self._break_off(why)
        elif upstream.reused and why == "reset" and self.kept is not None:
            self._connect(fresh=True)  # the arm was closing it while idle: nobody's failure
        else:
            self._left_by(arm)
            if self.kept is None:
                self._fail(502, f"the arm failed ({why}); the request is too large to be sent again", why)
            else:
                self._attempts.lost(why)
                self.start()
        self.forward()

    # The answer, as it comes from the arm.

    def answer_head(self, status: int, lines: list[bytes], length: bytes | None, event_stream: bool) -> None:
        """`length` is None where the answer comes in chunks or ends with its connection."""
        arm, request, record = self.arm, self.request, self.record
        assert arm
        if status == 503 and self.kept is not None and self._attempts.others:
            self._turned_away(arm)
            return
        self.answered = True
        self.kept, request.line, request.fields = None, b"", b""  # never sent again, and a stream may last
        record.status, record.served, record.digest = status, arm.name, arm.digest
        if status < 500:
            arm.breaker.success()
        else:
            arm.breaker.failure()
        bodyless = request.method == b"HEAD" or status in (204, 304)
        self._chunks = length is None and not bodyless and not request.http10
        self._event_stream = event_stream
        close = not (request.keep_alive and self.sent) or (length is None and not bodyless and request.http10)
        self._out.append(status_line(status))
        self._out += lines
        self._out.append(arm.response_lines)
        if length is not None:
            self._out.append(b"content-length: %b\r\n" % length)
        elif self._chunks:
            self._out.append(b"transfer-encoding: chunked\r\n")
        self._out.append(b"connection: close\r\n\r\n" if close else b"\r\n")
        self._wait("idle", arm.config.timeouts.idle_s)

    def answer_body(self, data: bytes) -> None:
        """A piece of the answer's body."""
        assert self.arm
        now = time.monotonic()
        self.client.deadline = now + self.arm.config.timeouts.idle_s
        self.record.answer_piece(data, now)
        if self._chunks:
            self._out += (b"%x\r\n" % len(data), data, b"\r\n")
        else:
            self._out.append(data)

    def answer_end(self) -> None:
        """The answer is whole."""
        if self._chunks:
            self._out.append(LAST_CHUNK)
        self.flush()
        self._close(self.record.status, None)
        self.client.done()

    def flush(self) -> None:
        """Writes what has gathered, at once."""
        if self._out:
            self.client.write(b"".join(self._out))
            self._out.clear()

    # Ends other than a whole answer.

    def _turned_away(self, arm: Arm) -> None:
        """The arm takes nothing now, as while it starts or stops: the next one is asked."""
        assert self.upstream
        self.upstream.close()
        self._left_by(arm)
        self._attempts.skip("503")
        self.start()
        self.forward()

    def _left_by(self, arm: Arm) -> None:
        """An attempt has failed; the arm is no longer ours, and need not be waited for."""
        self.client.resume()
        arm.breaker.failure()
        arm.in_flight -= 1
        self.arm = self.upstream = None

    def _break_off(self, why: str) -> None:
        """An answer that was begun is never begun again: a stream ends with an error, all else is cut."""
        if self._event_stream and self._chunks:
            gap = b"\n\n" if self.record.unread else b""  # it broke within an event
            self._out += (chunk(gap + error_event(f"the arm broke off: {why}")), LAST_CHUNK)
            self.flush()
            self._close(self.record.status, why)
            self.client.done()
        else:
            self._close(self.record.status, why)
            self.client.abort()

    def _fail(self, status: int, message: str, why: str) -> None:
        self._close(status, why)
        self.client.fail(status, message)

    def _close(self, status: int, error: str | None) -> None:
        if self.arm:
            self.arm.in_flight -= 1
        self.arm = self.upstream = None
        self.record.status = status
        self.record.error = error or (str(status) if status >= 500 else None)  # as OpenTelemetry has it
        self.record.ended = time.monotonic()
        self.live.observe(self.record)

    # What is waited for, and until when.

    def _wait_on(self) -> None:
        if self.sent:
            assert self.arm
            self._wait("first_byte", self.arm.config.timeouts.first_byte_s)
        else:
            self._wait("body", self.live.policy.limits.stall_s)

    def _wait(self, what: str, seconds: float) -> None:
        self.waiting = what
        self.client.deadline = time.monotonic() + seconds
