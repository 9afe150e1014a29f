"""Simulated experiments: what the guards do to candidates whose truth is known.

Users ask several times, each with a speed of their own; latencies are log-normal; the guards
look again after every request of the candidate.
"""

from __future__ import annotations

import math
import random
import statistics
from dataclasses import dataclass
from decimal import Decimal

from serve.rollout.guard import Guard, Seen
from serve.rollout.ramp import decide
from serve.router.policy import Rollout

BETWEEN, WITHIN = 0.25, 0.35  # standard deviations of log-latency: from user to user, from request to request
FAILURES = 0.01  # of the baseline
USERS = 4000  # each asks several times
LEAST_SHARE = 0.1  # what the baseline has beyond nine to one tells little and is not drawn


@dataclass(frozen=True)
class Truth:
    """How a candidate differs."""

    name: str
    latency_ratio: float = 1.0
    error_points: float = 0.0


TRUTHS = (
    Truth("A/A: no difference"),
    Truth("+15 % latency", latency_ratio=1.15),
    Truth("+2 points of errors", error_points=2.0),
    Truth("+1 % latency, too little to matter", latency_ratio=1.01),
)


@dataclass(frozen=True)
class Outcomes:
    """Of many experiments with one truth. Requests are the candidate's, until the rollback."""

    truth: str
    experiments: int
    rolled_back: int
    held: int
    median_requests: float | None
    median_percent: float | None


def simulate(truth: Truth, experiments: int, seed: int) -> Outcomes:
    """Ramps from the first step to 100 %, or until they are rolled back or held."""
    ends = [
        experiment(truth, random.Random(f"{seed} {truth.name} {number}")) for number in range(experiments)
    ]
    back = [(requests, percent) for action, requests, percent in ends if action == "rollback"]
    return Outcomes(
        truth.name,
        experiments,
        len(back),
        sum(action == "hold" for action, _, _ in ends),
        statistics.median(requests for requests, _ in back) if back else None,
        float(statistics.median(percent for _, percent in back)) if back else None,
    )


def experiment(truth: Truth, draw: random.Random) -> tuple[str, int, Decimal]:
    """One ramp: how it ended (rollback, hold or done), after how many requests, at what percent."""
    plan = Rollout.model_validate({"arm": "a", "dwell_s": 1e-9})
    slower, extra = math.log(truth.latency_ratio), truth.error_points / 100
    users = [(b"%d" % number, draw.random(), draw.gauss(0, BETWEEN)) for number in range(USERS)]
    steps = iter(plan.steps)
    percent = next(steps)
    share = max(LEAST_SHARE, float(percent) / 100)
    guard = Guard(plan, share)
    while True:
        user, place, speed = draw.choice(users)
        candidate = place < share
        failed = draw.random() < FAILURES + (extra if candidate else 0)
        e2e = None if failed else math.exp(speed + draw.gauss(0, WITHIN) + (slower if candidate else 0))
        guard.add(Seen(candidate, user, failed, e2e, e2e))
        if not candidate:
            continue  # nothing new against the candidate
        decision = decide(guard, percent, 1.0, None)
        if decision.action in ("rollback", "hold"):
            return decision.action, guard.errors.requests[True], percent
        if decision.action == "advance":
            percent = next(steps)
            if percent == 100:
                return "done", guard.errors.requests[True], percent
            share = max(LEAST_SHARE, float(percent) / 100)
            guard.step(share)
