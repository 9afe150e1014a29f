"""Who is next: clients take turns, so fifty requests of one do not hold up the one of another."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")


class Client(NamedTuple):
    """Who asks: an address, and of those behind it the one that the request names (OpenAI's `user`)."""

    address: str
    user: str = ""


NOBODY = Client("")


class Turns(Generic[T]):
    """A queue in which addresses take turns, and so do the users of each; a client's own stay in order.

    Whoever had a turn goes to the end, and whoever is new begins there (round robin).
    """

    def __init__(self) -> None:
        self._lines: dict[str, dict[str, deque[T]]] = {}
        self._size = 0

    def __len__(self) -> int:
        """From any thread."""
        return self._size

    def __iter__(self) -> Iterator[T]:
        for users in self._lines.values():
            for line in users.values():
                yield from line

    def put(self, client: Client, item: T) -> None:
        """Behind what this client has waiting, or else behind all clients."""
        self._lines.setdefault(client.address, {}).setdefault(client.user, deque()).append(item)
        self._size += 1

    def first(self) -> T | None:
        """What `take` would take; None when nothing waits."""
        return next(iter(self), None)

    def take(self) -> T:
        """The next one, of at least one."""
        address, users = next(iter(self._lines.items()))
        user, line = next(iter(users.items()))
        del self._lines[address], users[user]
        item = line.popleft()
        if line:
            users[user] = line
        if users:
            self._lines[address] = users
        self._size -= 1
        return item

    def drop(self, unwanted: Callable[[T], bool]) -> None:
        """Take out what is unwanted; nobody's turn changes."""
        if not any(map(unwanted, self)):
            return
        before, self._lines = self._lines, {}
        size = 0
        for address, users in before.items():
            for user, line in users.items():
                if kept := deque(item for item in line if not unwanted(item)):
                    self._lines.setdefault(address, {})[user] = kept
                    size += len(kept)
        self._size = size


class Gate:
    """A few places that clients get in turn. Of one event loop."""

    def __init__(self, places: int) -> None:
        self._free = places
        self._waiting: Turns[asyncio.Future[None]] = Turns()

    async def enter(self, client: Client) -> ExitStack:
        """A place, as soon as there is one; closing what is returned gives it back."""
        if self._free:
            self._free -= 1
        else:
            turn = asyncio.get_running_loop().create_future()
            self._waiting.put(client, turn)
            try:
                await turn
            except asyncio.CancelledError:
                if turn.cancelled():
                    self._waiting.drop(lambda other: other is turn)
                else:  # the place came at the same moment
                    self._leave()
                raise
        place = ExitStack()
        place.callback(self._leave)
        return place

    def _leave(self) -> None:
        while self._waiting:
            turn = self._waiting.take()
            if not turn.done():  # its client has not left
                turn.set_result(None)
                return
        self._free += 1
