"""How soon a rollback takes effect: from the POST, or the command, to the first answer by the baseline."""

from __future__ import annotations

import asyncio
import re
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import uvloop

from bench.router.load import hold, request
from bench.router.servers import ROOT, allow_files, arm, router
from engines.errors import UserError
from engines.ports import free_port

POLICY = """\
experiment: bench
baseline: b
arms:
  a: {{url: "http://127.0.0.1:{port}"}}
  b: {{url: "http://127.0.0.1:{port}"}}
split: {{key: "header:x-user-id", weights: {{a: 50, b: 50}}}}
rollout: {{arm: a, dwell_s: 3600}}
"""
STREAMS = 500
EVENT_S = 0.5
ARM = re.compile(rb"x-ab-arm: (\w+)\r\n")


@dataclass
class Rollbacks:
    """Milliseconds of each; streams that were open all the while."""

    post_ms: list[float] = field(default_factory=list)
    command_ms: list[float] = field(default_factory=list)
    streams: int = 0
    streams_lost: int = 0


def measure(times: int, streams: int, folder: Path, commands: int = 5) -> Rollbacks:
    """The candidate's traffic is taken away so often, by POST and then by command. Linux."""
    folder.mkdir(parents=True, exist_ok=True)
    allow_files(streams)
    admin_port = free_port()
    with arm(folder) as behind:
        policy = POLICY.format(port=behind.port)
        with router(folder, policy, "--admin-port", str(admin_port)) as it:
            admin = Admin(admin_port, folder / "state" / "admin-token")
            return uvloop.run(_measure(it.port, admin, policy.encode(), times, commands, streams))


class Admin:
    """The router's admin port."""

    def __init__(self, port: int, token_file: Path) -> None:
        self._port = port
        self._token_file = token_file
        self._token = token_file.read_bytes().strip()

    async def ask(self, method: bytes, path: bytes, body: bytes = b"") -> None:
        """One request. Raises UserError on an answer other than 200."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        head = b"%b %b HTTP/1.1\r\nAuthorization: Bearer %b\r\nContent-Length: %d\r\n\r\n"
        writer.write(head % (method, path, self._token, len(body)) + body)
        answer = await reader.read()
        writer.close()
        if not answer.startswith(b"HTTP/1.1 200 "):
            raise UserError(f"the admin port answered {answer.decode('latin-1')}; expected 200")

    async def roll_back(self) -> None:
        await self.ask(b"POST", b"/rollout/rollback")

    async def command(self) -> None:
        """The same as a person does it, the start of Python included."""
        where = ["--admin", f"http://127.0.0.1:{self._port}", "--admin-token-file", str(self._token_file)]
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "serve", "rollout", "rollback", *where),
            cwd=ROOT,
            stdout=asyncio.subprocess.DEVNULL,
        )
        if await process.wait():
            raise UserError("python -m serve rollout rollback failed; its reason is above")


async def _measure(
    port: int, admin: Admin, policy: bytes, times: int, commands: int, streams: int
) -> Rollbacks:
    found = Rollbacks(streams=streams)

    async def held() -> None:
        found.post_ms = [await _effect_ms(port, admin, policy, admin.roll_back) for _ in range(times)]
        found.command_ms = [await _effect_ms(port, admin, policy, admin.command) for _ in range(commands)]

    events = int((times * 0.2 + commands * 2) / EVENT_S) + 4  # they outlast it
    found.streams_lost = streams - (await hold(port, streams, events, EVENT_S, held)).whole
    return found


async def _effect_ms(port: int, admin: Admin, policy: bytes, act: Callable[[], Awaitable[None]]) -> float:
    """A user of the candidate asks without pause while it is rolled back."""
    await admin.ask(b"PUT", b"/policy", policy)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    user = 0
    while await _served_by(reader, writer, user) != b"a":
        user += 1
    began = time.perf_counter()
    acting = asyncio.ensure_future(act())
    while await _served_by(reader, writer, user) != b"b":
        pass
    seconds = time.perf_counter() - began
    await acting
    writer.close()
    return seconds * 1e3


async def _served_by(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, user: int) -> bytes:
    writer.write(request(user))
    head = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head)
    found = ARM.search(head)
    if not head.startswith(b"HTTP/1.1 200 ") or not length or not found:
        raise UserError(f"found {head.decode('latin-1')!r}; expected an answer of an arm")
    await reader.readexactly(int(length[1]))
    return found[1]
