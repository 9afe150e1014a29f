"""What comes in: how large one request may be, how large all of them together, and how long one may pause."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from starlette.requests import Request
from starlette.types import Message, Receive

from serve.arm.arm import Arm
from serve.arm.errors import ApiError, overloaded

PAUSE = 30.0  # seconds; who sends no more holds memory for nothing


@contextmanager
def held(arm: Arm) -> Iterator[Callable[[int], None]]:
    """A function to be told of bytes of one request, which count until the end; ApiError past a limit."""
    limits, size = arm.settings.limits, 0

    def count(more: int) -> None:
        nonlocal size
        size += more
        arm.body_bytes += more
        if size > limits.max_body_bytes:
            raise ApiError(
                413,
                f"the request has more than {limits.max_body_bytes} bytes: send less, or smaller pictures",
            )
        if arm.body_bytes > limits.max_bodies_bytes:
            raise overloaded(
                f"requests of {limits.max_bodies_bytes} bytes are being answered: ask again later"
            )

    try:
        yield count
    finally:
        arm.body_bytes -= size


@contextmanager
def limited(arm: Arm, receive: Receive) -> Iterator[Receive]:
    """`receive` within the limits. A body counts until its request is answered, and stays that long."""
    whole = False

    async def counting() -> Message:
        nonlocal whole
        try:
            async with asyncio.timeout(None if whole else PAUSE):
                message = await receive()
        except TimeoutError:
            raise ApiError(408, f"the request's body stopped coming for {PAUSE:g} seconds") from None
        whole = not message.get("more_body", False)
        count(len(message.get("body", b"")))
        return message

    with held(arm) as count:
        yield counting


async def read(request: Request) -> bytes:
    """The whole body, which the request does not keep."""
    return b"".join([chunk async for chunk in request.stream()])
