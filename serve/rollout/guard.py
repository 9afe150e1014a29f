"""The guards of a rollout: when the candidate is shown to be worse, and by enough to matter."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from serve.rollout.evidence import FEWEST, Errors, Interval, Mismatch, Ratio
from serve.router.policy import Rollout

ALPHA = 0.05  # chance of ever rolling back a candidate that is no worse, over all guards together
EACH = ALPHA / 3


def level(step: int) -> float:
    """Of one latency at the so-manieth step, from 1: together they are EACH, however many come."""
    return EACH / (step * (step + 1))


class Seen(NamedTuple):
    """A finished request of the split, counted for the arm it was assigned to, whoever answered it."""

    candidate: bool
    user: bytes
    failed: bool
    ttft: float | None  # seconds; None where there was no answer
    e2e: float | None


class Guard:
    """Evidence since the rollout began, kept apart by step.

    Within a step the shares are constant, so a busy hour makes both arms slow alike; across steps it would
    not, as the candidate's requests come late. Failures of all steps count together, latencies and users
    begin anew, and the steps share their chance of a false alarm.
    """

    def __init__(self, plan: Rollout, share: float) -> None:
        """`share` is the candidate's, a fraction of the split."""
        self.plan = plan
        self.errors = Errors()
        self.past: list[dict[str, Any]] = []  # figures of the steps before this one
        self._begin(share)

    def step(self, share: float) -> None:
        """The candidate's share has changed."""
        if any(self.errors.steps[-1].requests):
            self.past.append(self._step_figures())
        self.errors.step()
        self._begin(share)

    def _begin(self, share: float) -> None:
        self.ttft, self.e2e, self.mismatch = Ratio(), Ratio(), Mismatch(share)

    @property
    def step_requests(self) -> int:
        """Of the candidate, at this step."""
        return self.errors.steps[-1].requests[True]

    @property
    def _level(self) -> float:
        return level(len(self.errors.steps))

    def add(self, seen: Seen) -> None:
        """One request."""
        candidate, user, failed, ttft, e2e = seen
        self.mismatch.add(candidate, user)
        self.errors.add(candidate, failed)
        if ttft is not None:
            self.ttft.add(candidate, user, ttft)
        if e2e is not None:
            self.e2e.add(candidate, user, e2e)

    def alarm(self) -> str | None:
        """Why to roll back: shown to be worse, and by estimate at least half as much as the plan's limit.

        The second half spares a candidate whose deficit is real but too small to matter.
        """
        points = self.errors.excess * 100
        if points > self.plan.error_points / 2 and self.errors.worse(EACH):
            return f"fails {points:.1f} points more often than the baseline"
        for name, ratio in (("ttft", self.ttft), ("e2e latency", self.e2e)):
            if ratio.log <= math.log(self.plan.latency_ratio) / 2:
                continue
            found = ratio.interval(self._level)
            if found and found.low > 1:
                return f"{name} is {found.estimate:.2f} times the baseline's, at least {found.low:.2f}"
        return None

    def blind(self) -> str | None:
        """Why latency cannot be judged at this step; None where it can."""
        users = self.e2e.users
        return f"latency is not compared: {users:.0f} of {FEWEST} users an arm" if users < FEWEST else None

    def figures(self) -> dict[str, Any]:
        """For a reader: requests, failures, users, and every interval."""
        return {
            "requests": named(self.errors.requests),
            "failures": named(self.errors.failures),
            "excess_failures": told(self.errors.interval(EACH)) if all(self.errors.requests) else None,
            "error_points": self.plan.error_points,
            "latency_ratio": self.plan.latency_ratio,
            "step": self._step_figures(),
            "past": self.past,
        }

    def _step_figures(self) -> dict[str, Any]:
        return {
            "percent": round(self.mismatch.share * 100, 2),
            "requests": named(self.errors.steps[-1].requests),
            "failures": named(self.errors.steps[-1].failures),
            "users": named(self.mismatch.users),
            "sample_ratio_mismatch": self.mismatch.shown(),
            "ttft_ratio": told(self.ttft.interval(self._level)),
            "e2e_ratio": told(self.e2e.interval(self._level)),
            "latency_not_compared": self.blind(),
        }


def named(counts: list[int]) -> dict[str, int]:
    """Counts of baseline and candidate, in this order."""
    return {"baseline": counts[0], "candidate": counts[1]}


def told(interval: Interval | None) -> list[float] | None:
    """Estimate, low and high, for JSON."""
    if interval is None:
        return None
    return [round(end, 4) for end in (interval.estimate, interval.low, interval.high)]
