"""Simulated experiments: what the guards do to candidates whose truth is known.

The guards are the router's own, request by request, and look again after every request of the candidate.
Users ask several times, each with a speed of their own; latencies are log-normal. What else a truth
may have: users of whom a few ask most, spread latencies, and times that change for both arms alike meanwhile.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal

import numpy as np

from serve.rollout.guard import Guard, Seen
from serve.rollout.ramp import decide
from serve.router.policy import Rollout

BETWEEN, WITHIN = 0.25, 0.35  # standard deviations of log-latency: from user to user, from request to request
USERS = 4000  # each asks several times
NAMES = [b"%d" % number for number in range(USERS)]
LEAST_SHARE = 0.2  # what the baseline has beyond four to one tells little and is not drawn
DRAWN = 2048  # requests at once


@dataclass(frozen=True)
class Truth:
    """How a candidate differs, and in what world."""

    name: str
    latency_ratio: float = 1.0
    error_points: float = 0.0
    failures: float = 0.01  # of the baseline, a rate
    spread: float = 1.0  # of latencies, of the usual
    activity: float = 0.0  # the k-th user asks in proportion to k ** -activity
    drift: float = 1.0  # both arms' latency and failures, from one step to the next, times


TRUTHS = (
    Truth("equal"),
    Truth("equal, latencies spread three times as wide", spread=3.0),
    Truth("equal, the first tenth of users asks half of all", activity=0.7),
    Truth("equal, both slower and failing more from step to step", drift=1.3),
    Truth("+15 % latency", latency_ratio=1.15),
    Truth("+15 % latency, spread twice as wide", latency_ratio=1.15, spread=2.0),
    Truth("+15 % latency, both slower from step to step", latency_ratio=1.15, drift=1.3),
    Truth("+2 points of errors", error_points=2.0),
    Truth("+2 points of errors where 5 % fail anyway", error_points=2.0, failures=0.05),
    Truth("+1 % latency, too little to matter", latency_ratio=1.01),
)


@dataclass(frozen=True)
class Outcomes:
    """Of many experiments with one truth. Requests are the candidate's, until the rollback."""

    truth: str
    experiments: int
    rolled_back: int
    rate: float
    rate_low: float  # 95 % interval (Wilson)
    rate_high: float
    held: int
    median_requests: float | None
    median_percent: float | None


def simulate(truth: Truth, experiments: int, seed: int, plan: Rollout | None = None) -> Outcomes:
    """Ramps from the first step to 100 %, or until they are rolled back or held."""
    plan = plan or Rollout.model_validate({"arm": "a", "dwell_s": 1e-9})
    names = seed, int.from_bytes(truth.name.encode())
    ends = [experiment(truth, plan, np.random.default_rng([*names, k])) for k in range(experiments)]
    back = [(requests, percent) for action, requests, percent in ends if action == "rollback"]
    return Outcomes(
        truth.name,
        experiments,
        len(back),
        len(back) / experiments,
        *wilson(len(back), experiments),
        sum(action == "hold" for action, _, _ in ends),
        statistics.median(requests for requests, _ in back) if back else None,
        float(statistics.median(percent for _, percent in back)) if back else None,
    )


def experiment(truth: Truth, plan: Rollout, draw: np.random.Generator) -> tuple[str, int, Decimal]:
    """One ramp: how it ended (rollback, hold or done), after how many requests, at what percent."""
    requests, world = 0, World(truth, draw)
    guard = Guard(plan, _share(plan.steps[0]))
    for number, percent in enumerate(plan.steps):
        if percent == 100:
            break
        if number:
            guard.step(_share(percent))
        for seen in world.requests(_share(percent), truth.drift**number):
            guard.add(seen)
            if not seen.candidate:
                continue  # nothing new against the candidate
            requests += 1
            decision = decide(guard, percent, 1.0, lambda: None)
            if decision.action in ("rollback", "hold"):
                return decision.action, requests, percent
            if decision.action == "advance":
                break
    return "done", requests, percent


class World:
    """Users with their places in the split and their speeds; requests without end."""

    def __init__(self, truth: Truth, draw: np.random.Generator) -> None:
        self._truth, self._draw = truth, draw
        self._places = draw.random(USERS)
        self._speeds = draw.normal(0, BETWEEN, USERS)
        weights = np.arange(1, USERS + 1) ** -truth.activity
        self._cumulative = np.cumsum(weights / weights.sum())

    def requests(self, share: float, drift: float) -> Iterator[Seen]:
        """Of all users, in no order; a user is the candidate's when its place is below the share.

        First tokens would come at a constant fraction of the whole time, and be judged as that is: they are
        left out.
        """
        truth, draw = self._truth, self._draw
        while True:
            users = np.searchsorted(self._cumulative, draw.random(DRAWN) * self._cumulative[-1], "right")
            candidate = self._places[users] < share
            failed = draw.random(DRAWN) < truth.failures * drift + candidate * truth.error_points / 100
            noise = truth.spread * (self._speeds[users] + draw.normal(0, WITHIN, DRAWN))
            seconds = np.exp(noise) * drift * np.where(candidate, truth.latency_ratio, 1.0)
            columns = users.tolist(), candidate.tolist(), failed.tolist(), seconds.tolist()
            for user, new, bad, e2e in zip(*columns, strict=True):
                yield Seen(new, NAMES[user], bad, None, None if bad else e2e)


def _share(percent: Decimal) -> float:
    return max(LEAST_SHARE, float(percent) / 100)


def wilson(found: int, n: int) -> tuple[float, float]:
    """The 95 % score interval of a rate (Wilson, 1927)."""
    z, rate = 1.959964, found / n
    middle, half = rate + z**2 / (2 * n), z * math.sqrt(rate * (1 - rate) / n + z**2 / (4 * n**2))
    return max((middle - half) / (1 + z**2 / n), 0.0), min((middle + half) / (1 + z**2 / n), 1.0)
