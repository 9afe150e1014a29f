"""A policy in force: its version, decisions and arms. Replaced whole: a request sees one policy only."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from serve.router.arm import Arm
from serve.router.assignment import Assigner
from serve.router.head import NOTED
from serve.router.messages import answer
from serve.router.policy import Policy
from serve.router.record import Record
from serve.router.region import open_database


@dataclass(frozen=True)
class Live:
    """`observe` is told of every request that has ended."""

    version: int
    policy: Policy
    assign: Assigner
    arms: dict[str, Arm]
    turns: dict[str, tuple[Arm, ...]]  # by the assigned arm: it, and who is asked when it cannot
    noted: frozenset[bytes]  # headers whose values are read
    observe: Callable[[Record], None]

    def record(self, address: str, method: bytes, target: bytes, request_id: bytes = b"") -> Record:
        """Of a request that begins now under this policy."""
        told = (time.monotonic(), address, method, target, self.policy.experiment, self.version)
        return Record(*told, request_id=request_id)

    def own_answer(self, target: bytes) -> bytes:
        """To /health, 200 whatever the arms do; to /ready, where one of them is healthy."""
        ready = target == b"/health" or any(arm.healthy for arm in self.arms.values())
        body = b'{"status": "ok"}' if ready else b'{"status": "no arm is healthy"}'
        return answer(200 if ready else 503, body)

    def mirrors(self) -> bool:
        """Whether this request is copied."""
        mirror = self.policy.mirror
        return mirror is not None and random.random() * 100 < mirror.percent


def go_live(
    policy: Policy, version: int, observe: Callable[[Record], None], before: Live | None = None
) -> Live:
    """Makes a policy ready. Arms it shares with the one before keep their connections and their record.

    Raises UserError when an arm has no url, or a database or manifest cannot be read; nothing changes then.
    """
    database = policy.region.database if policy.region else None
    assign = Assigner(policy, open_database(database) if database else None)
    arms = {}
    for name, config in policy.arms.items():
        old = before.arms.get(name) if before else None
        same = old and before and old.config == config and before.policy.breaker == policy.breaker
        arms[name] = old if old and same else Arm(name, config, policy.breaker)
    turns = {
        name: (arm, *(arms[other] for other in policy.fallback if other != name))
        for name, arm in arms.items()
    }
    return Live(version, policy, assign, arms, turns, NOTED | assign.wanted, observe)
