"""The guards of a rollout: when the candidate is shown to be worse, and by enough to matter."""

from __future__ import annotations

import math
from dataclasses import dataclass

from serve.rollout.evidence import Errors, Interval, Mismatch, Ratio
from serve.router.policy import Rollout

ALPHA = 0.05  # chance of ever rolling back a candidate that is no worse, over all guards together
EACH = ALPHA / 3


@dataclass(frozen=True)
class Seen:
    """A finished request of the split, counted for the arm it was assigned to, whoever answered it."""

    candidate: bool
    user: bytes
    failed: bool
    ttft: float | None  # seconds; None where there was no answer
    e2e: float | None


class Guard:
    """Evidence since the rollout began; users are counted anew at each step."""

    def __init__(self, plan: Rollout, share: float) -> None:
        """`share` is the candidate's, a fraction of the split."""
        self.plan = plan
        self.errors = Errors()
        self.ttft = Ratio()
        self.e2e = Ratio()
        self.step(share)

    def step(self, share: float) -> None:
        """The candidate's share has changed."""
        self.mismatch = Mismatch(share)
        self._before = self.errors.requests[True]

    @property
    def step_requests(self) -> int:
        """Of the candidate, at this step."""
        return self.errors.requests[True] - self._before

    def add(self, seen: Seen) -> None:
        """One request."""
        self.mismatch.add(seen.candidate, seen.user)
        self.errors.add(seen.candidate, seen.failed)
        if seen.ttft is not None:
            self.ttft.add(seen.candidate, seen.user, seen.ttft)
        if seen.e2e is not None:
            self.e2e.add(seen.candidate, seen.user, seen.e2e)

    def alarm(self) -> str | None:
        """Why to roll back: shown to be worse, and by estimate at least half as much as the plan's limit.

        The second half spares a candidate whose deficit is real but too small to matter.
        """
        points = self.errors.excess * 100
        if points > self.plan.error_points / 2 and self.errors.worse(EACH):
            return f"fails {points:.1f} points more often than the baseline"
        for name, ratio in (("ttft", self.ttft), ("e2e latency", self.e2e)):
            found = ratio.interval(EACH)
            if found and found.low > 1 and found.estimate > math.sqrt(self.plan.latency_ratio):
                return f"{name} is {found.estimate:.2f} times the baseline's, at least {found.low:.2f}"
        return None

    def figures(self) -> dict[str, object]:
        """For a reader: requests, failures, users, and every interval."""

        def told(interval: Interval | None) -> list[float] | None:
            if interval is None:
                return None
            return [round(x, 4) for x in (interval.estimate, interval.low, interval.high)]

        return {
            "requests": {"baseline": self.errors.requests[0], "candidate": self.errors.requests[1]},
            "failures": {"baseline": self.errors.failures[0], "candidate": self.errors.failures[1]},
            "step_users": {"baseline": self.mismatch.users[0], "candidate": self.mismatch.users[1]},
            "sample_ratio_mismatch": self.mismatch.shown(),
            "excess_failures": told(self.errors.interval(EACH)) if all(self.errors.requests) else None,
            "ttft_ratio": told(self.ttft.interval(EACH)),
            "e2e_ratio": told(self.e2e.interval(EACH)),
        }
