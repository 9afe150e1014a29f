"""Arms whose every byte a test decides, and the router before them, all on one event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from serve.router.run import Options, Running, serving


@dataclass
class Asked:
    """A request as an arm got it."""

    head: bytes
    body: bytes

    def header(self, name: str) -> list[str]:
        """Every value of a header."""
        lines = self.head.decode("latin-1").split("\r\n")[1:]
        fields = [line.partition(":") for line in lines]
        return [value.strip() for key, _, value in fields if key.lower() == name]


Script = Callable[[Asked, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class ScriptedArm:
    """What it was asked, how many connections it was asked on, and whether a client left it."""

    port: int = 0
    asked: list[Asked] = field(default_factory=list)
    connections: int = 0
    left: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@asynccontextmanager
async def listening(
    serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]], port: int = 0
) -> AsyncIterator[int]:
    """A server on loopback, by what it does with a connection; its port. No connection outlives it."""
    tasks: set[asyncio.Task[None]] = set()

    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        tasks.add(task)
        try:
            await serve(reader, writer)
        except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
            pass
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()
            tasks.discard(task)

    server = await asyncio.start_server(connection, "127.0.0.1", port)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def scripted_arm(
    script: Script, port: int = 0, gate: asyncio.Event | None = None
) -> AsyncIterator[ScriptedArm]:
    """An arm that answers requests by a script, on keep-alive connections; it reads none before `gate`."""
    arm = ScriptedArm()

    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        known = False
        if gate:
            await gate.wait()
        while True:
            asked = await read_request(reader)
            if b"GET /health " in asked.head:
                writer.write(whole(b"ok"))
                continue
            arm.asked.append(asked)
            arm.connections += not known
            known = True
            try:
                await script(asked, reader, writer)
            except (asyncio.IncompleteReadError, ConnectionError):
                arm.left.set()
                raise

    async with listening(connection, port) as arm.port:
        yield arm


async def read_request(reader: asyncio.StreamReader) -> Asked:
    """One request, its body unframed."""
    head = await reader.readuntil(b"\r\n\r\n")
    asked = Asked(head, b"")
    if asked.header("transfer-encoding"):
        asked.body = await read_chunks(reader)
    elif length := asked.header("content-length"):
        asked.body = await reader.readexactly(int(length[0]))
    return asked


async def read_chunk(reader: asyncio.StreamReader) -> bytes:
    """One chunk of a body; empty is the last."""
    size = int(await reader.readline(), 16)
    return (await reader.readexactly(size + 2))[:-2]


async def read_chunks(reader: asyncio.StreamReader) -> bytes:
    body = b""
    while piece := await read_chunk(reader):
        body += piece
    return body


@dataclass
class Answer:
    """A response as a client got it; `whole` is false where the connection broke first."""

    status: int
    head: bytes
    body: bytes
    whole: bool = True

    def header(self, name: str) -> list[str]:
        return Asked(self.head, b"").header(name)


async def read_answer(reader: asyncio.StreamReader, *, method: str = "POST") -> Answer:
    """One response on a connection."""
    head = await reader.readuntil(b"\r\n\r\n")
    answer = Answer(int(head.split(b" ", 2)[1]), head, b"")
    try:
        if method == "HEAD" or answer.status in (204, 304):
            pass
        elif answer.header("transfer-encoding"):
            while piece := await read_chunk(reader):
                answer.body += piece
        elif length := answer.header("content-length"):
            answer.body = await reader.readexactly(int(length[0]))
        else:
            answer.body = await reader.read()
    except (asyncio.IncompleteReadError, ConnectionError, ValueError):
        answer.whole = False
    return answer


def request(
    body: bytes = b"{}", *, method: str = "POST", target: str = "/v1/chat/completions", **headers: str
) -> bytes:
    """A request with Content-Length; underscores in header names are dashes."""
    fields = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    head = f"{method} {target} HTTP/1.1\r\nHost: router\r\nContent-Length: {len(body)}\r\n{fields}\r\n"
    return head.encode() + body


async def ask(port: int, data: bytes) -> Answer:
    """Sends bytes on a connection of their own; the answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(data)
        return await read_answer(reader, method=data.split(b" ", 1)[0].decode("latin-1"))
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


def whole(body: bytes, status: int = 200, headers: bytes = b"") -> bytes:
    """A response with Content-Length."""
    return b"HTTP/1.1 %d X\r\ncontent-length: %d\r\n%b\r\n%b" % (status, len(body), headers, body)


STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
LAST = b"0\r\n\r\n"


def event(data: str) -> bytes:
    """A server-sent event as a chunk."""
    text = f"data: {data}\n\n".encode()
    return b"%x\r\n%b\r\n" % (len(text), text)


def answers(body: bytes, status: int = 200, headers: bytes = b"") -> Script:
    """The script that always answers the same."""

    async def script(asked: Asked, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(whole(body, status, headers))

    return script


@asynccontextmanager
async def routing(folder: Path, policy: str, otlp: str | None = None) -> AsyncIterator[Running]:
    """A router under a policy; its log is folder/log, its token `token`."""
    file, token = folder / "policy.yaml", folder / "token"
    file.write_text(policy)
    token.write_text("token")
    options = Options(
        policy=file,
        host="127.0.0.1",
        port=0,
        admin_host="127.0.0.1",
        admin_port=0,
        admin_token_file=token,
        state=folder / "state",
        log=folder / "log",
        log_stdout=False,
        otlp=otlp,
        drain_s=0.0,
    )
    async with serving(options) as running:
        yield running


def policy_text(a: ScriptedArm, b: ScriptedArm | None = None, *, weight_a: int = 100, more: str = "") -> str:
    """Arms a (the candidate) and b (the baseline), split by header x-user-id."""
    return (
        "experiment: e\nbaseline: b\narms:\n"
        f'  a: {{url: "{a.url}", digest: "sha256:aa"}}\n'
        f'  b: {{url: "{(b or a).url}"}}\n'
        f'split: {{key: "header:x-user-id", weights: {{a: {weight_a}, b: {100 - weight_a}}}}}\n' + more
    )
