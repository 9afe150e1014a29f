"""The router as a process while 500 streams run and everything around it breaks."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from bench.router import servers
from engines.ports import free_port
from serve.router.assignment import Assigner
from serve.router.reading import parse_policy
from tests.conftest import ROOT
from tests.scripted_arm import (
    LAST,
    STREAM,
    Answer,
    Asked,
    Script,
    ask,
    event,
    read_chunks,
    request,
    scripted_arm,
)
from tests.test_router import run

STREAMS = 500
EVENTS = 6
BROKEN = {
    "killed": "reset",
    "reset": "reset",
    "garbage": "garbage",
    "hung": "idle_timeout",
}  # as the log says
ARMS = (*BROKEN, "slow", "good")


def script(name: str, go: asyncio.Event) -> Script:
    """The arm of that name: one event at once; the rest, or what breaks it, after `go`."""

    async def answer(asked: Asked, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if go.is_set() and name in ("reset", "garbage"):
            writer.write(b"" if name == "reset" else b"SSH-2.0-OpenSSH\r\n")
            raise ConnectionResetError
        writer.write(STREAM + event("0"))
        await go.wait()
        match name:
            case "reset":
                writer.transport.abort()
                raise ConnectionResetError
            case "garbage":
                writer.write(b"zz not http\r\n\r\n")
            case "hung":
                await reader.read(1)  # until the router closes
            case _:
                for number in range(1, EVENTS):
                    await asyncio.sleep(0.2 if name == "slow" else 0)
                    writer.write(event(str(number)))
                writer.write(LAST)

    return answer


def policy_text(ports: dict[str, int]) -> str:
    arms = "".join(
        f'  {name}: {{url: "http://127.0.0.1:{port}", timeouts: {{idle_s: 3, first_byte_s: 30}}}}\n'
        for name, port in ports.items()
    )
    weights = ", ".join(f"{name}: {25 if name == 'good' else 15}" for name in ports)
    return (
        f"experiment: e\nbaseline: good\narms:\n{arms}"
        f'split: {{key: "header:x-user-id", weights: {{{weights}}}}}\n'
        "fallback: [good]\nretries: 0\nlimits: {connections: 2000}\n"
    )


@asynccontextmanager
async def arms(go: asyncio.Event, folder: Path) -> AsyncIterator[tuple[dict[str, int], servers.Measured]]:
    """Every arm's port; the one to be killed is a process."""
    async with AsyncExitStack() as stack:
        victim = stack.enter_context(servers.arm(folder))
        scripts = {name: scripted_arm(script(name, go)) for name in ARMS if name != "killed"}
        ports = {name: (await stack.enter_async_context(arm)).port for name, arm in scripts.items()}
        yield {"killed": victim.port} | ports, victim


@asynccontextmanager
async def router(folder: Path, log: Path) -> AsyncIterator[tuple[int, asyncio.subprocess.Process]]:
    """Its port and process; it is told to end, and does."""
    port = free_port()
    where = [f"--port={port}", "--admin-port=0", f"--state={folder}/state", f"--log={log}"]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "serve", "router", str(folder / "policy.yaml"), *where),
        cwd=ROOT,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stderr
        assert (await process.stderr.readline()).startswith(b"ready: ")
        yield port, process
        process.terminate()
        assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


class Stream:
    """One user's stream: begun, then read to its end."""

    def __init__(self, port: int, user: str) -> None:
        self._port, self._user = port, user

    async def begin(self) -> None:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        self._writer.write(request(X_User_Id=self._user, X_Events="2/600"))
        self._head = await self._reader.readuntil(b"\r\n\r\n")

    async def end(self) -> Answer:
        body = await read_chunks(self._reader)
        self._writer.close()
        return Answer(int(self._head.split(b" ", 2)[1]), self._head, body)


async def reload(process: asyncio.subprocess.Process, file: Path, text: str) -> str:
    """A policy file replaced, and told; what the router says."""
    new = file.with_suffix(".new")
    new.write_text(text)
    new.replace(file)
    process.send_signal(signal.SIGHUP)
    assert process.stderr
    while b"policy" not in (line := await process.stderr.readline()):
        assert line, "the router has ended"  # others tell of arms, and of the log
    return line.decode()


async def outlive(folder: Path, log: Path) -> None:
    """500 streams run while four arms break and the policy is replaced 50 times, 5 times by a broken one."""
    go = asyncio.Event()
    async with arms(go, folder) as (ports, victim):
        text = policy_text(ports)
        (folder / "policy.yaml").write_text(text)
        assign = Assigner(parse_policy(text))
        users = [f"user-{number}" for number in range(STREAMS)]
        assigned = [assign({b"x-user-id": user.encode()}, "").arm for user in users]
        async with router(folder, log) as (port, process):
            streams = [Stream(port, user) for user in users]
            await asyncio.gather(*(stream.begin() for stream in streams))
            ends = [asyncio.create_task(stream.end()) for stream in streams]
            assert victim.process
            victim.process.kill()
            go.set()
            for number in range(50):
                broken = number % 10 == 5
                said = await reload(process, folder / "policy.yaml", "broken: [" if broken else text)
                assert ("is refused" if broken else "is in force") in said, said
            for arm, answer in zip(assigned, await asyncio.gather(*ends), strict=True):
                assert answer.header("x-ab-arm") == [arm]
                assert (b"event: error" in answer.body) == (arm in BROKEN), (arm, answer)
                if arm not in BROKEN:
                    assert answer.body.count(b"data: ") == EVENTS
            again = [(user, arm) for user, arm in zip(users, assigned, strict=True) if arm != "hung"]
            asked = (ask(port, request(X_User_Id=user)) for user, _ in again)
            for (_, arm), answer in zip(again, await asyncio.gather(*asked), strict=True):
                assert answer.header("x-ab-arm") == ["good" if arm in BROKEN else arm]
                assert answer.body.count(b"data: ") == EVENTS


def lines_of(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines()]


def test_only_what_was_on_a_broken_wire_is_lost(tmp_path: Path) -> None:
    run(outlive(tmp_path, tmp_path / "log"))
    lines = lines_of(tmp_path / "log")
    assert len({line["feature_flag.context.id"] for line in lines}) == STREAMS
    assert (
        len({(line["feature_flag.context.id"], line["feature_flag.result.variant"]) for line in lines})
        == STREAMS
    )
    for arm in ARMS:
        own = [line for line in lines if line["feature_flag.result.variant"] == arm]
        errors = {line.get("error.type") for line in own}
        fallbacks = {line.get("ab.fallback") for line in own}
        assert errors == (
            {None} if arm not in BROKEN else {BROKEN[arm]} if arm == "hung" else {BROKEN[arm], None}
        )
        assert (fallbacks == {None}) == (arm in ("slow", "good", "hung"))


def test_a_full_disk_costs_lines_only(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    with tiny_disk(disk):
        run(outlive(tmp_path, disk / "log"))
        assert 0 < len(lines_of(disk / "log")) < STREAMS, "whole lines, as many as had room"


@contextmanager
def tiny_disk(folder: Path) -> Iterator[None]:
    """64 kB; the test is skipped where nothing may be mounted."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no disk to fill: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
