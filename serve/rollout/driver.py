"""A rollout on a running router: traffic in, new versions of the policy out.

The share in force is the policy's own, and the ramp's status is in the line of the audit log that changed it:
there is nothing else to keep, and a crash finds both or neither. Evidence and dwell time begin anew when the
router does.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from decimal import Decimal
from typing import Any

from engines.errors import UserError
from serve.rollout.gate import refusal
from serve.rollout.guard import Guard, Seen
from serve.rollout.ramp import decide
from serve.router.control import ConflictError, Control
from serve.router.policy import HUNDRED, Policy, Rollout
from serve.router.reading import parse_policy, with_weights
from serve.router.record import Record, counts_against_arm

TICK_S = 0.2
ACTIVE = ("running", "paused")
STATUSES = ("idle", *ACTIVE, "rolled back", "done")


@dataclass(frozen=True)
class State:
    """Of the ramp: idle, running, paused, rolled back or done; and why."""

    status: str = "idle"
    reason: str = "not started"


class Driver:
    """Watches the split's traffic and changes its weights."""

    def __init__(self, control: Control, tell: Callable[[str], None]) -> None:
        self._control = control
        self._tell = tell
        self._one_at_a_time = asyncio.Lock()
        self._begin()
        self.state = self._kept()

    def _begin(self) -> None:
        plan, self._since = self._policy.rollout, time.monotonic()
        self._percent, self._from = self.percent, self._control.router.live.version
        self.guard = Guard(plan, float(self._percent) / 100) if plan else None

    def _kept(self) -> State:
        """The state in the audit log; idle where the last rollout was another experiment's or arm's."""
        versions = self._control.versions
        for change in reversed(versions.changes):
            if change.rollout:
                try:
                    before = parse_policy(versions.text(change.version))
                except UserError:  # of a version of this program that allowed more
                    return State()
                if not _same(before, self._policy):
                    return State()
                return State(change.rollout, change.action.partition(": ")[2])
        return State()

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
        if not guard or record.version < self._from or record.mirror:
            return  # of a share before this step's
        if record.reason == "split" and record.assigned:
            guard.add(seen(record, guard.plan.arm))

    async def watch(self) -> None:
        """Decides again and again."""
        last = ""
        while True:
            await asyncio.sleep(TICK_S)
            try:
                await self.tick()
            except (UserError, OSError) as error:
                if last != (last := str(error)):
                    self._tell(f"rollout: {error}")

    async def tick(self) -> None:
        """Decides once."""
        async with self._one_at_a_time:
            self._follow()
            if not self.guard or self.state.status not in ACTIVE:
                return
            running, dwelt = self.state.status == "running", time.monotonic() - self._since
            decision = decide(self.guard, self.percent, dwelt, lambda: refusal(self._policy))
            match decision.action:
                case "rollback":
                    await self._set(Decimal(0), "rolled back", decision.reason, "rollout")
                case "advance" if running and decision.percent is not None:
                    await self._set(decision.percent, "running", decision.reason, "rollout")
                case "done" if running:
                    await self._set(self.percent, "done", decision.reason, "rollout")
                case _ if running:
                    self.state = State("running", decision.reason)

    def _follow(self) -> None:
        """The policy may have been changed by hand."""
        if not self.guard or self._policy.rollout != self.guard.plan:
            self._begin()
            self.state = self._kept()
        elif self._percent != self.percent:
            self._step()

    # What a person may ask. To ask again for what is so already changes nothing.

    async def start(self, by: str) -> None:
        """The first step, with no evidence from before; a paused ramp goes on where it was."""
        async with self._one_at_a_time:
            plan = self._plan()
            if self.state.status == "done" and self.percent > 0:
                raise UserError(f"the rollout is done at {self.percent} %; roll back first")
            if self.state.status == "paused":
                await self._set(self.percent, "running", f"goes on, by {by}", by)
            elif self.state.status != "running":
                self._begin()
                await self._set(plan.steps[0], "running", f"started by {by}", by)

    async def pause(self, by: str) -> None:
        """The share stays; the guards go on watching."""
        async with self._one_at_a_time:
            self._active()
            if self.state.status == "running":
                await self._set(self.percent, "paused", f"paused by {by}", by)

    async def promote(self, by: str, to: Decimal | None = None) -> None:
        """The step `to`, by default the next, now, without its dwell time. 100 % needs the gate as ever."""
        async with self._one_at_a_time:
            steps = self._plan().steps
            self._active()
            if to is not None and to not in steps:
                told = ", ".join(f"{step.normalize():f}" for step in steps)
                raise UserError(f"{to} % is no step of the rollout; steps are {told}")
            higher = [step for step in steps if step > self.percent]
            if to is None and not higher:
                raise UserError(f"the candidate has {self.percent} % already")
            goal = to or higher[0]
            if goal > self.percent:
                await self._set(goal, self.state.status, f"promoted by {by}", by)

    async def rollback(self, by: str) -> None:
        """All to the baseline, for the next request; what is in flight finishes."""
        self._plan()
        async with self._one_at_a_time:
            if self.percent > 0 or self.state.status in ACTIVE:
                await self._set(Decimal(0), "rolled back", f"rolled back by {by}", by)

    def figures(self) -> dict[str, Any]:
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
            "dwell_s": plan.dwell_s,
            "min_requests": plan.min_requests,
            "gate": refusal(self._policy) or "PASS",
            **self.guard.figures(),
        }

    def metrics(self) -> str:
        """The ramp in Prometheus' text format; nothing where the policy has none."""
        plan = self._policy.rollout
        if not plan:
            return ""
        lines = [
            "# HELP router_rollout_percent The candidate's share of the split.",
            "# TYPE router_rollout_percent gauge",
            f'router_rollout_percent{{arm="{plan.arm}"}} {self.percent}',
            "# HELP router_rollout_status 1 for what the ramp is.",
            "# TYPE router_rollout_status gauge",
        ]
        lines += [
            f'router_rollout_status{{arm="{plan.arm}",status="{status}"}} {int(status == self.state.status)}'
            for status in STATUSES
        ]
        return "\n".join(lines) + "\n"

    def _plan(self) -> Rollout:
        plan = self._policy.rollout
        if not plan:
            raise UserError("the policy has no rollout; add rollout: {arm: NAME}")
        return plan

    def _active(self) -> None:
        if self.state.status not in ACTIVE:
            raise UserError(f"the rollout is {self.state.status}; start it first")

    async def _set(self, percent: Decimal, status: str, reason: str, by: str) -> None:
        if percent == HUNDRED > self.percent and (why := refusal(self._policy)):
            raise UserError(why)
        action = f"rollout {self._plan().arm} {percent.normalize():f} %: {reason}"
        while True:
            live, versions = self._control.router.live, self._control.versions
            weights = {self._plan().arm: percent, self._policy.baseline: HUNDRED - percent}
            text = with_weights(versions.text(live.version), weights)
            try:
                await self._control.put(text, action, by, live.version, status)
            except ConflictError:
                continue  # someone put a policy in between: decided on top of that
            except OSError as error:
                if percent:
                    raise
                # A full disk must not keep users on a broken candidate.
                self._control.router.switch(self._control.router.prepare(parse_policy(text), live.version))
                reason += f"; not kept on disk ({error.strerror}): a restart undoes it"
            break
        if self._percent != self.percent:
            self._step()
        self.state = State(status, reason)
        self._tell(f"policy version {self._control.router.live.version}: {action}")

    def _step(self) -> None:
        self._percent, self._from = self.percent, self._control.router.live.version
        self._since = time.monotonic()
        if self.guard:
            self.guard.step(float(self._percent) / 100)


def _same(before: Policy, now: Policy) -> bool:
    """Whether two policies roll out the same arm in the same experiment."""
    if not before.rollout or not now.rollout:
        return False
    return (before.experiment, before.rollout.arm) == (now.experiment, now.rollout.arm)


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
