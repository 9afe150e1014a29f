"""The response to a chat request: whole or as server-sent events, given up when the client leaves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any

from pydantic import BaseModel
from starlette.types import Message, Receive, Scope, Send

from serve.arm.arm import Arm
from serve.arm.chat import Chat, begin, chunks, whole
from serve.arm.errors import ApiError
from serve.arm.schema import ChatRequest
from serve.arm.turns import Client

EVENTS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would collect them
]
DONE: Message = {"type": "http.response.body", "body": b"data: [DONE]\n\n"}
FAREWELL = 5.0  # seconds for a client to take the news that its time is over


class Reply:
    """An ASGI application for one request."""

    def __init__(self, arm: Arm, request: ChatRequest) -> None:
        self._arm, self._request = arm, request

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer; ApiError until the response has begun, an event with the error after that."""
        await _while_connected(receive, self._answer(scope, send))

    async def _answer(self, scope: Scope, send: Send) -> None:
        client = Client(scope["client"][0] if scope.get("client") else "", self._request.named_client)
        with self._arm.admitted(client, self._request.n) as model:
            end = asyncio.get_running_loop().time() + self._arm.settings.seconds
            async with _until(end):
                chat = await begin(self._arm, model, self._request, client)
            try:
                await (self._events if self._request.stream else self._whole)(chat, end, send)
            finally:
                chat.cancel()
                scope["facts"] |= chat.facts()

    async def _whole(self, chat: Chat, end: float, send: Send) -> None:
        async with _until(end):
            completion = await whole(chat)
        body = completion.model_dump_json().encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _events(self, chat: Chat, end: float, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": EVENTS})
        options = self._request.stream_options
        try:
            async with _until(end):
                async for chunk in chunks(chat, include_usage=bool(options and options.include_usage)):
                    await send(_event(chunk))
        except ApiError as error:
            with suppress(TimeoutError):  # who does not read, as long as he stays, is left without
                async with asyncio.timeout(FAREWELL):
                    await send(_event(error.body))
                    await send(DONE)
        else:
            await send(DONE)


def _event(value: BaseModel) -> Message:
    body = f"data: {value.model_dump_json()}\n\n".encode()
    return {"type": "http.response.body", "body": body, "more_body": True}


@asynccontextmanager
async def _until(end: float) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout_at(end):
            yield
    except TimeoutError:
        raise ApiError(504, "the answer took too long: ask for fewer tokens, or later") from None


async def _while_connected(receive: Receive, work: Coroutine[Any, Any, None]) -> None:
    """Do the work, but cancel it at once when the client has gone."""

    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    tasks = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if tasks[0].done():
            tasks[0].result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
