"""HTTP/1.1 as bytes: what a proxy may not forward, and the answers it gives itself."""

from __future__ import annotations

import json
from functools import cache
from http import HTTPStatus

# Of one connection, not of the message (RFC 9110, 7.6.1). Framing is written anew on each side.
HOP_BY_HOP = frozenset(
    (
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"content-length",
    )
)
PHRASES = {status.value: status.phrase for status in HTTPStatus}
LAST_CHUNK = b"0\r\n\r\n"


class RefusedError(Exception):
    """A request that is not passed on; `status` and message go to the client."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def chunk(data: bytes) -> bytes:
    """A piece of a body with transfer-encoding: chunked."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def named_by_connection(value: bytes) -> set[bytes]:
    """Lower-case names of the headers that a Connection header says belong to the connection."""
    return {name.strip().lower() for name in value.split(b",")}


@cache
def status_line(status: int) -> bytes:
    """With the standard's words: an arm's own are not passed on."""
    return f"HTTP/1.1 {status} {PHRASES.get(status, '')}\r\n".encode()


def answer(status: int, body: bytes, *, close: bool = False, kind: bytes = b"application/json") -> bytes:
    """A whole response of the router's own."""
    return b"%bcontent-type: %b\r\ncontent-length: %d\r\n%b\r\n%b" % (
        status_line(status),
        kind,
        len(body),
        b"connection: close\r\n" if close else b"",
        body,
    )


def error_body(status: int, message: str) -> bytes:
    """An error as OpenAI's clients read it."""
    kind = "invalid_request_error" if status < 500 else "api_error"
    return json.dumps({"error": {"message": message, "type": kind, "code": status}}).encode()


def error_event(message: str) -> bytes:
    """The server-sent event that ends a broken stream."""
    return b"event: error\ndata: " + error_body(502, message) + b"\n\n"
