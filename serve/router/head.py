"""Request heads: what is accepted, and how it is passed on."""

from __future__ import annotations

import re
from dataclasses import dataclass

from serve.router.messages import HOP_BY_HOP, RefusedError, named_by_connection
from serve.router.policy import Limits

# Read by the router itself; each is known by name once a head is complete.
REQUEST_ID = b"x-request-id"
NOTED = frozenset((b"connection", b"content-length", b"expect", b"host", b"transfer-encoding", REQUEST_ID))
NOT_PASSED = HOP_BY_HOP | {b"host", b"expect"}
HOST = re.compile(rb"[A-Za-z0-9._~:\[\]-]+")
TARGET = re.compile(rb"/[!-~]*")


@dataclass(slots=True)
class Request:
    """A head as it is passed on: `line`, the arm's host line, `fields`, which end it."""

    method: bytes
    line: bytes
    fields: bytes
    chunked: bool
    http10: bool
    keep_alive: bool


class Head:
    """Gathers one head from the parser. `seen` has the noted headers, the values of repeated ones joined."""

    __slots__ = ("_lines", "_noted", "seen", "target")

    def __init__(self, noted: frozenset[bytes]) -> None:
        self._noted = noted
        self._lines: list[bytes] = []
        self.seen: dict[bytes, bytes] = {}
        self.target = b""

    def add(self, name: bytes, value: bytes) -> None:
        """One header."""
        lower = name.lower()
        if lower in self._noted:
            value = value.strip(b" \t")
            self.seen[lower] = self.seen[lower] + b", " + value if lower in self.seen else value
        if lower not in NOT_PASSED:
            self._lines.append(name + b": " + value + b"\r\n")

    def request(self, method: bytes, version: str, keep_alive: bool, limits: Limits) -> Request:
        """The whole head, checked. Raises RefusedError on what two servers could read in two ways."""
        seen, lines = self.seen, self._lines
        length, coding = seen.get(b"content-length"), seen.get(b"transfer-encoding")
        if version not in ("1.1", "1.0"):
            raise RefusedError(400, "expected HTTP/1.1")
        if not TARGET.fullmatch(self.target):
            raise RefusedError(400, "expected a path as the request's target")
        if not HOST.fullmatch(seen.get(b"host", b"-" if version == "1.0" else b"")):
            raise RefusedError(400, "expected one Host header with the name of a host")
        if coding is not None and (length is not None or coding.lower() != b"chunked" or version == "1.0"):
            raise RefusedError(400, "expected either Content-Length or Transfer-Encoding: chunked")
        if length is not None and not length.isdigit():
            raise RefusedError(400, "expected one Content-Length")
        if length is not None:
            check_body(int(length), limits)
        if seen.get(b"expect", b"100-continue").lower() != b"100-continue":
            raise RefusedError(417, "expected no Expect header but 100-continue")
        if b"connection" in seen and (drop := named_by_connection(seen[b"connection"]) - NOT_PASSED):
            lines = [line for line in lines if line.partition(b":")[0].lower() not in drop]
        if coding is not None:
            lines.append(b"transfer-encoding: chunked\r\n")
        elif length is not None:
            lines.append(b"content-length: %b\r\n" % length)
        lines.append(b"\r\n")
        block = b"".join(lines)
        if len(self.target) + len(block) > limits.header_bytes:
            raise RefusedError(431, f"the request's head is larger than {limits.header_bytes} bytes")
        line = method + b" " + self.target + b" HTTP/1.1\r\n"
        return Request(method, line, block, coding is not None, version == "1.0", keep_alive)


def check_body(size: int, limits: Limits, gathered: bool = False) -> None:
    """RefusedError for more bytes of a body than may pass, or than may be gathered to find its user."""
    if size > limits.body_bytes:
        raise RefusedError(413, f"the body is larger than {limits.body_bytes} bytes")
    if gathered and size > limits.buffer_bytes:
        told = f"the body is larger than {limits.buffer_bytes} bytes; its user cannot be read"
        raise RefusedError(413, told)
