"""What all connections share: the policy in force, who is watched, where finished requests are told."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from typing import Protocol

from serve.router.live import Live, go_live
from serve.router.log import Log
from serve.router.metrics import Metrics
from serve.router.policy import Policy
from serve.router.record import Record

SWEEP_S = 0.25


class Watched(Protocol):
    deadline: float

    @property
    def busy(self) -> bool:
        """Whether someone still waits for an answer."""

    def expire(self) -> None: ...
    def cut(self) -> None: ...


class Router:
    """`live` is replaced whole: requests already begun keep the policy they began with."""

    def __init__(self, policy: Policy, version: int, log: Log) -> None:
        self.log = log
        self.metrics = Metrics()
        self.observers: list[Callable[[Record], None]] = [self.metrics.observe, log.write]
        self._ended: list[Record] = []  # of which nobody was told yet
        self.closing = False
        self.room = sys.maxsize  # for clients, whatever the policy says
        self.watched: dict[Watched, None] = {}  # a set of thousands would take four times the memory
        self.live: Live = go_live(policy, version, self.observe)

    def prepare(self, policy: Policy, version: int) -> Live:
        """A policy ready to be switched to. Raises UserError and changes nothing when it cannot be used."""
        return go_live(policy, version, self.observe, self.live)

    def switch(self, live: Live) -> None:
        """Puts a policy in force for every request that comes after."""
        before, self.live = self.live, live
        kept = set(live.arms.values())
        for arm in before.arms.values():
            if arm not in kept:
                arm.retire()

    def observe(self, record: Record) -> None:
        """A request has ended. Observers are told on the loop's next turn, of all that ended in this one:
        answers go first, and the same code again and again costs half as much."""
        if not self._ended:
            asyncio.get_running_loop().call_soon(self._tell)
        self._ended.append(record)

    def _tell(self) -> None:
        ended, self._ended = self._ended, []
        for observer in self.observers:
            for record in ended:
                observer(record)

    async def sweep(self) -> None:
        """Ends what has waited too long. One look at all of them costs less than a timer for each.

        While the router itself stood still (a starved machine, a stopped process) it read nothing of what
        came: that time counts against nobody.
        """
        due = time.monotonic() + SWEEP_S
        while True:
            await asyncio.sleep(SWEEP_S)
            now = time.monotonic()
            late, due = now - due, now + SWEEP_S
            if late > SWEEP_S:
                for one in self.watched:
                    one.deadline += late
            for one in [one for one in self.watched if one.deadline < now]:
                one.expire()

    async def drain(self, seconds: float) -> None:
        """Takes no more requests and waits, so long at most, for those in flight; then cuts them off."""
        self.closing = True
        until = time.monotonic() + seconds
        while time.monotonic() < until and any(one.busy for one in self.watched):
            await asyncio.sleep(0.05)
        for one in list(self.watched):
            one.cut()
        while self.watched:  # each leaves when its end is logged
            await asyncio.sleep(0.01)
        self._tell()
        for arm in self.live.arms.values():
            arm.retire()
