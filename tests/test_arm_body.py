"""All requests together are held to a size: however many come, they do not fill the memory."""

from __future__ import annotations

import asyncio
import select
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

import httpx2
import pytest
from starlette.types import Message

from engines.checkpoint import Checkpoint
from engines.export import export
from serve.arm import body as module
from serve.arm.arm import Arm, Settings
from serve.arm.body import held, limited
from serve.arm.errors import ApiError
from serve.arm.media import Limits
from tests.live_arm import LiveArm, live_arm
from tests.test_arm_server import chat, eventually

FILE = 1_000_000
ONE, ALL = 4 * FILE, 16 * FILE


@pytest.fixture(scope="module")
def live(micro_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveArm]:
    out = tmp_path_factory.mktemp("body") / "micro"
    export(Checkpoint.open(micro_checkpoint), out)
    with live_arm(out, "--context=256", MAX_FILE_SIZE=str(FILE)) as running:
        yield running


def upload(arm: LiveArm, size: int, sent: int) -> socket.socket:
    """A connection that has sent so much of a request."""
    host, port = arm.url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=20)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ncontent-length: {size}\r\n\r\n"
    connection.sendall(head.encode() + b'{"messages": "' + bytes(sent).replace(b"\0", b"x"))
    return connection


def test_many_uploads_at_once_do_not_fill_the_memory(live: LiveArm) -> None:
    before = live.metric("process_resident_memory_bytes")
    with ExitStack() as open_ones:
        connections = [open_ones.enter_context(upload(live, ONE - 1, 3_000_000)) for _ in range(40)]
        # Five of them fit; all others have been told.
        waiting = set(connections)
        while len(waiting) > ALL // 3_000_000:
            ready = select.select(waiting, [], [], 20)[0][0]
            answer = HTTPResponse(ready)
            answer.begin()
            assert answer.status == 503
            assert answer.headers["retry-after"] == "1"
            assert b"ask again later" in answer.read()
            waiting.remove(ready)
        assert 0 < live.metric("arm_body_bytes") <= ALL
        assert live.metric("process_resident_memory_bytes") - before < 3 * ALL
    eventually(lambda: live.metric("arm_body_bytes") == 0)
    assert chat(live).status_code == 200
    # Who left while sending has not failed: nobody was there to be answered.
    lines = httpx2.get(f"{live.url}/metrics").text.splitlines()
    statuses = [line for line in lines if line.startswith("arm_requests_total{") and 'status="500"' in line]
    assert not statuses
    assert not any("Traceback" in line for line in live.log)


def test_one_upload_too_large_is_told(live: LiveArm) -> None:
    found = httpx2.post(f"{live.url}/v1/chat/completions", content=bytes(ONE + 1))
    assert found.status_code == 413
    assert f"more than {ONE} bytes" in found.json()["error"]["message"]
    assert live.metric("arm_body_bytes") == 0


@pytest.fixture
def arm() -> Arm:
    return Arm(Settings("some", limits=Limits(max_file_bytes=10)))


def test_bytes_count_until_the_end(arm: Arm) -> None:
    with held(arm) as one:
        one(40)
        with held(arm) as other:
            other(40)
            assert arm.body_bytes == 80
        assert arm.body_bytes == 40
        with pytest.raises(ApiError, match="more than 40 bytes"), held(arm) as other:
            other(41)
        with ExitStack() as full:
            for _ in range(3):
                full.enter_context(held(arm))(40)
            with pytest.raises(ApiError, match="160 bytes are being answered") as caught, held(arm) as other:
                other(1)
        assert caught.value.status == 503
    assert arm.body_bytes == 0


def test_who_stops_sending_is_told(arm: Arm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAUSE", 0.01)
    pieces: list[Message] = [{"type": "http.request", "body": b"a", "more_body": True}]

    async def receive() -> Message:
        if pieces:
            return pieces.pop()
        await asyncio.Event().wait()
        raise AssertionError

    async def run() -> Any:
        with limited(arm, receive) as counting:
            await counting()
            await counting()

    with pytest.raises(ApiError, match="stopped coming") as caught:
        asyncio.run(run())
    assert caught.value.status == 408
    assert arm.body_bytes == 0


def test_who_waits_for_an_answer_may_wait(arm: Arm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAUSE", 0.01)
    pieces: list[Message] = [
        {"type": "http.disconnect"},
        {"type": "http.request", "body": b"a", "more_body": False},
    ]

    async def receive() -> Message:
        if len(pieces) == 1:
            await asyncio.sleep(0.05)  # longer than a body may pause
        return pieces.pop()

    async def run() -> list[str]:
        with limited(arm, receive) as counting:
            return [(await counting())["type"] for _ in range(2)]

    assert asyncio.run(run()) == ["http.request", "http.disconnect"]
