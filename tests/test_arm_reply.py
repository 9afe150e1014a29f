"""A client that does not read what it asked for holds nothing for longer than its time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.types import Message

from serve.arm import reply as module
from serve.arm.answers import ChatCompletionChunk
from serve.arm.arm import Arm, Settings
from serve.arm.reply import Reply
from serve.arm.schema import ChatRequest
from serve.arm.schema import Message as Said


@pytest.mark.parametrize("reads", [0, 5])
def test_who_does_not_read_is_left(reads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    async def chunks(chat: Any, **_: Any) -> AsyncIterator[ChatCompletionChunk]:
        while True:
            yield ChatCompletionChunk(id="1", created=1, model="a", choices=[], system_fingerprint=None)
            await asyncio.sleep(0)

    monkeypatch.setattr(module, "chunks", chunks)
    monkeypatch.setattr(module, "FAREWELL", 0.01)
    taken: list[Message] = []

    async def send(message: Message) -> None:
        if len(taken) > reads:
            await asyncio.Event().wait()  # its buffers are full
        taken.append(message)

    async def run() -> None:
        request = ChatRequest(messages=[Said(role="user", content="?")], stream=True)
        end = asyncio.get_running_loop().time() + 0.02
        reply = Reply(Arm(Settings("a")), request)
        await asyncio.wait_for(reply._events(SimpleNamespace(), end, send), timeout=5)  # type: ignore[arg-type]

    asyncio.run(run())
    assert len(taken) == reads + 1
