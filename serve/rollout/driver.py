"""A rollout on a running router: traffic in, new versions of the policy out.

The share in force is the policy's own, so versions, audit log and restarts need nothing more. What is kept
beside it is whether the ramp runs; evidence and dwell time begin anew when the router does.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from decimal import Decimal
from pathlib import Path

from engines.errors import UserError
from serve.rollout.guard import Guard, Seen
from serve.rollout.ramp import decide
from serve.router.control import Control
from serve.router.policy import HUNDRED, Policy, Rollout
from serve.router.reading import with_weights
from serve.router.record import Record, counts_against_arm
from serve.router.versions import Change

TICK_S = 0.2


@dataclass(frozen=True)
class State:
    """Of the ramp: idle, running, paused, rolled back or done; and why."""

    status: str = "idle"
    reason: str = "not started"


class Driver:
    """Watches the split's traffic and changes its weights; `state.json` keeps whether it may."""

    def __init__(self, control: Control, folder: Path, tell: Callable[[str], None]) -> None:
        self._control = control
        self._file = folder / "rollout.json"
        self._tell = tell
        self.state = _read(self._file) if self._file.is_file() else State()
        self._begin()

    def _begin(self) -> None:
        plan, self._since = self._policy.rollout, time.monotonic()
        self._percent = self.percent
        self.guard = Guard(plan, float(self._percent) / 100) if plan else None

    @property
    def _policy(self) -> Policy:
        return self._control.router.live.policy

    @property
    def percent(self) -> Decimal:
        """The candidate's share in force."""
        plan = self._policy.rollout
        return self._policy.split.weights[plan.arm] if plan else Decimal(0)

    def observe(self, record: Record) -> None:
        """A request has ended."""
        guard = self.guard
        if guard and record.reason == "split" and record.assigned and not record.mirror:
            guard.add(seen(record, guard.plan.arm))

    async def watch(self) -> None:
        """Decides again and again."""
        while True:
            await asyncio.sleep(TICK_S)
            try:
                await self.tick()
            except (UserError, OSError) as error:
                self._tell(f"rollout: {error}")

    async def tick(self) -> None:
        """Decides once."""
        if not self.guard or self._policy.rollout != self.guard.plan:
            self._begin()  # another plan
        elif self._percent != self.percent:
            self._step()  # changed by hand
        if not self.guard or self.state.status not in ("running", "paused"):
            return
        dwelt = time.monotonic() - self._since
        decision = decide(self.guard, self.percent, dwelt, gate_refusal(self._policy))
        match decision.action:
            case "rollback":
                await self._set(Decimal(0), "rolled back", decision.reason, "rollout")
            case "advance" if self.state.status == "running" and decision.percent is not None:
                await self._set(decision.percent, "running", decision.reason, "rollout")
            case "done":
                self._keep(State("done", decision.reason))
            case _ if self.state.status == "running":
                self.state = State("running", decision.reason)

    # What a person may ask.

    async def start(self, by: str) -> Change:
        """The first step, with no evidence from before."""
        plan = self._plan()
        if self.state.status in ("running", "paused") and self.percent > 0:
            raise UserError(
                f"the rollout is {self.state.status} at {self.percent} %; promote, pause or roll back"
            )
        self._begin()
        return await self._set(plan.steps[0], "running", f"started by {by}", by)

    def pause(self, by: str) -> State:
        """The share stays; the guards go on watching. Pausing what is paused lets it run again."""
        if self.state.status not in ("running", "paused"):
            raise UserError(f"the rollout is {self.state.status}; start it first")
        status = "paused" if self.state.status == "running" else "running"
        self._keep(State(status, f"{status} by {by}"))
        return self.state

    async def promote(self, by: str) -> Change:
        """The next step now, without its dwell time. 100 % needs the gate all the same."""
        higher = [step for step in self._plan().steps if step > self.percent]
        if not higher:
            raise UserError(f"the candidate has {self.percent} % already")
        if higher[0] == HUNDRED and (why := gate_refusal(self._policy)):
            raise UserError(why)
        return await self._set(higher[0], "running", f"promoted by {by}", by)

    async def rollback(self, by: str) -> Change:
        """All to the baseline, for the next request; what is in flight finishes."""
        self._plan()
        return await self._set(Decimal(0), "rolled back", f"rolled back by {by}", by)

    def figures(self) -> dict[str, object]:
        """What a reader sees of it."""
        plan = self._policy.rollout
        if not plan or not self.guard:
            return {"status": "idle", "reason": "the policy has no rollout"}
        return {
            **asdict(self.state),
            "arm": plan.arm,
            "percent": float(self.percent),
            "steps": [float(step) for step in plan.steps],
            "dwelt_s": round(time.monotonic() - self._since, 1),
            "gate": gate_refusal(self._policy) or "PASS",
            **self.guard.figures(),
        }

    def _plan(self) -> Rollout:
        plan = self._policy.rollout
        if not plan:
            raise UserError("the policy has no rollout; add rollout: {arm: NAME}")
        return plan

    async def _set(self, percent: Decimal, status: str, reason: str, by: str) -> Change:
        arm, text = self._plan().arm, self._control.versions.text(self._control.router.live.version)
        weights = {arm: percent, self._policy.baseline: HUNDRED - percent}
        action = f"rollout {arm} {percent.normalize():f} %: {reason}"
        change = await self._control.put(with_weights(text, weights), action, by)
        self._step()
        self._keep(State(status, reason))
        self._tell(f"policy version {change.version}: {action}")
        return change

    def _step(self) -> None:
        self._percent, self._since = self.percent, time.monotonic()
        if self.guard:
            self.guard.step(float(self._percent) / 100)

    def _keep(self, state: State) -> None:
        self.state = state
        new = self._file.with_suffix(".new")
        new.write_text(json.dumps(asdict(state)))
        new.replace(self._file)


def _read(file: Path) -> State:
    try:
        return State(**json.loads(file.read_text()))
    except (ValueError, TypeError):
        raise UserError(f"{file} is damaged: expected status and reason; remove it") from None


def seen(record: Record, candidate: str) -> Seen:
    """A finished request as evidence, for or against the arm it was assigned to."""
    failed = counts_against_arm(record.status, record.error, record.fallback)
    whole = not failed and record.status < 400 and record.error is None
    return Seen(
        record.assigned == candidate,
        record.key,
        failed,
        record.ttft if whole else None,
        record.e2e if whole else None,
    )


def gate_refusal(policy: Policy) -> str | None:
    """Why the offline gate does not allow the candidate 100 %; None where it does."""
    plan = policy.rollout
    assert plan
    artifact = policy.arms[plan.arm].artifact
    if not plan.gate and not artifact:
        return f"100 % needs the offline gate of {plan.arm}; name its gate.json as rollout.gate"
    file = Path(plan.gate) if plan.gate else Path(artifact or "") / "evidence" / "gate.json"
    try:
        verdict = json.loads(file.read_text())["verdict"]
    except (OSError, ValueError, KeyError, TypeError):
        return f"100 % needs a gate that passed; {file} cannot be read"
    return None if verdict == "PASS" else f"100 % needs a gate that passed; {file} says {verdict}"
