"""One client, one request, and what became of it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPResponse

from bench.client import STALLED
from bench.endurance.mix import Request

WHOLE, LEFT, BROKEN = "whole", "left", "broken"


@dataclass(frozen=True)
class Heard:
    """end: whole, broken, or left by the client. status 0: nothing was heard. Times are monotonic."""

    id: str
    kind: str
    due: int
    began: float
    ended: float
    end: str
    status: int = 0
    arm: str = ""
    why: str = ""

    @property
    def good(self) -> bool:
        """Whether the client got what was due, or left before it could tell."""
        if self.end == LEFT:
            return self.status in (self.due, 0)
        return (self.end, self.status) == (WHOLE, self.due)


def ask(port: int, request: Request) -> Heard:
    """Asks the router on loopback, on a connection of its own."""
    began = time.monotonic()
    connection = HTTPConnection("127.0.0.1", port, timeout=STALLED)
    status, arm, end, why = 0, "", LEFT if request.leaves_s else BROKEN, ""
    headers = {"content-type": "application/json", "x-user-id": request.user, "x-request-id": request.id}
    try:
        connection.request(request.method, request.path, request.body, headers | request.headers)
        patience = request.leaves_s or STALLED  # from here on: who leaves has asked
        connection.sock.settimeout(patience)
        until = time.monotonic() + patience
        with connection.getresponse() as response:
            status, arm = response.status, response.headers.get("x-ab-arm", "")
            end, why = _read(response, until, end)
    except (OSError, HTTPException) as error:
        why = f"{type(error).__name__}: {error}"
        if isinstance(error, ConnectionError | HTTPException):
            end = BROKEN  # it was not the client that hung up
    finally:
        connection.close()
    return Heard(request.id, request.kind, request.status, began, time.monotonic(), end, status, arm, why)


def _read(response: HTTPResponse, until: float, late: str) -> tuple[str, str]:
    """Reads to the end of the answer, or until the client leaves."""
    if "event-stream" not in response.headers.get("content-type", ""):
        text = response.read()
        return WHOLE, text[:200].decode(errors="replace") if response.status != 200 else ""
    for line in response:
        if line.startswith(b"data: [DONE]"):
            response.read()
            return WHOLE, ""
        if line.startswith((b"event: error", b'data: {"error"')):
            return BROKEN, (line + response.read(300)).decode(errors="replace")
        if time.monotonic() > until:
            return late, "the time was over"
    return BROKEN, "a stream ended before [DONE]"
