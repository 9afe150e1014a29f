"""What a rollout does next: a pure function of plan, evidence and time."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Literal, NamedTuple

from serve.rollout.guard import Guard


class Decision(NamedTuple):
    """`percent` is the candidate's new share where it changes."""

    action: Literal["wait", "hold", "advance", "rollback", "done"]
    reason: str
    percent: Decimal | None = None


def decide(guard: Guard, percent: Decimal, dwelt_s: float, gate: Callable[[], str | None]) -> Decision:
    """`gate` tells why the offline gate does not allow 100 %, or None where it does."""
    plan, requests = guard.plan, guard.step_requests
    if why := guard.alarm():
        return Decision("rollback", why, Decimal(0))
    if guard.mismatch.shown():
        users = guard.mismatch.users
        return Decision("hold", f"sample-ratio mismatch: {users[1]} of {sum(users)} users at {percent} %")
    higher = [step for step in plan.steps if step > percent]
    if not higher:
        return Decision("done", f"the candidate has {percent} %")
    if dwelt_s < plan.dwell_s:
        return Decision("wait", f"{dwelt_s:.0f} of {plan.dwell_s:.0f} s at {percent} %")
    if requests < plan.min_requests:
        return Decision("wait", f"{requests} of {plan.min_requests} requests of the candidate at {percent} %")
    blind = guard.blind()
    if higher[0] == 100 and (refusal := blind or gate()):
        return Decision("hold", refusal)
    reason = f"{requests} requests at {percent} % without an alarm" + (f"; {blind}" if blind else "")
    return Decision("advance", reason, higher[0])
