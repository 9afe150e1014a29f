"""An arm that costs next to nothing: a short JSON answer, or a slow stream, as the request's headers say.

python -m bench.router.arm PORT
"""

from __future__ import annotations

import asyncio
import re
import resource
import sys
from typing import cast

import uvloop

LENGTH = re.compile(rb"content-length: (\d+)", re.IGNORECASE)
STREAM = re.compile(rb"x-events: (\d+)/([0-9.]+)", re.IGNORECASE)  # events / seconds between two
BODY = (
    b'{"id":"chatcmpl-1","object":"chat.completion","model":"m","choices":[{"index":0,"message":{"role":'
    b'"assistant","content":"A red square."},"finish_reason":"stop"}],"usage":{"prompt_tokens":300,'
    b'"completion_tokens":5,"total_tokens":305}}'
)
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (
    len(BODY),
    BODY,
)
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
EVENT = b'data: {"id":"chatcmpl-1","model":"m","choices":[{"index":0,"delta":{"content":" red"}}]}\n\n'
CHUNK = b"%x\r\n%b\r\n" % (len(EVENT), EVENT)


class Arm(asyncio.Protocol):
    """Answers what it can tell is whole; its clients are well-behaved."""

    def __init__(self) -> None:
        self.waiting = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.waiting += data
        end = self.waiting.find(b"\r\n\r\n")
        if end < 0:
            return
        length = LENGTH.search(self.waiting, 0, end)
        whole = end + 4 + (int(length[1]) if length else 0)
        if len(self.waiting) < whole:
            return
        stream = STREAM.search(self.waiting, 0, end)
        self.waiting = self.waiting[whole:]
        if stream:
            self.transport.write(HEAD + CHUNK)
            self.stream(int(stream[1]) - 1, float(stream[2]))
        else:
            self.transport.write(ANSWER)

    def stream(self, left: int, seconds: float) -> None:
        """One event, and the next after a while."""
        if self.transport.is_closing():
            return
        if left:
            asyncio.get_running_loop().call_later(seconds, self.stream, left - 1, seconds)
            self.transport.write(CHUNK)
        else:
            self.transport.write(b"0\r\n\r\n")


async def main(port: int) -> None:
    """Serves until it is killed."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    server = await asyncio.get_running_loop().create_server(Arm, "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
