"""What live traffic shows about a candidate: evidence that may be looked at after every request.

All of it is anytime-valid: the chance that a guard ever fires on arms that do not differ is at most its
alpha, however often it is looked at and whenever that ends.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

TAU = math.log(1.15)  # scale of effects the latency sequence is tuned to; any value is valid
FEWEST = 100  # users an arm needs before its latency is compared: the sequence is asymptotic
MOST_USERS = 50_000  # told apart; later ones count as one request each


A, B = 1.0, 30.0  # prior of a rate of failures
LOG_BETA = math.lgamma(A) + math.lgamma(B) - math.lgamma(A + B)


@dataclass(frozen=True)
class Interval:
    """An estimate and its two-sided confidence sequence now."""

    estimate: float
    low: float
    high: float


class Counts:
    """Requests and failures of baseline and candidate, in this order."""

    def __init__(self) -> None:
        self.requests = [0, 0]
        self.failures = [0, 0]


class Errors:
    """Failures of candidate and baseline, compared exactly, with no normal approximation, step by step.

    The rates may drift from one step of the shares to the next: a plain sum over steps would blame the
    candidate, whose requests come late, for a bad hour that both arms had. The e-process is a mixture of
    Beta(1, 30) martingales (rates of a few percent are expected, all are allowed), half with one rate an arm
    throughout and half with one a step, over the largest likelihood of any rates, a pair for each step, with
    the candidate's `excess` above the baseline's (Ramdas et al., Game-theoretic statistics and safe
    anytime-valid inference, 2023).
    """

    def __init__(self) -> None:
        self.steps = [Counts()]
        self._now = self.steps[0]

    def step(self) -> None:
        """The shares have changed."""
        self._now = Counts()
        self.steps.append(self._now)

    def add(self, candidate: bool, failed: bool) -> None:
        """One request."""
        self._now.requests[candidate] += 1
        self._now.failures[candidate] += failed

    @property
    def requests(self) -> list[int]:
        """Of baseline and candidate, in all steps."""
        return [sum(step.requests[arm] for step in self.steps) for arm in (0, 1)]

    @property
    def failures(self) -> list[int]:
        return [sum(step.failures[arm] for step in self.steps) for arm in (0, 1)]

    @property
    def excess(self) -> float:
        """Candidate's rate of failures less the baseline's, within steps (Mantel and Haenszel's weights)."""
        above = weight = 0.0
        for step in self.steps:
            (n0, n1), (f0, f1) = step.requests, step.failures
            if n0 and n1:
                above += (f1 * n0 - f0 * n1) / (n0 + n1)
                weight += n0 * n1 / (n0 + n1)
        return above / weight if weight else 0.0

    def worse(self, alpha: float) -> bool:
        """Whether the candidate is shown to fail more often."""
        return self.excess > 0 and self._log_evidence(0.0, above=True) > -math.log(alpha)

    def interval(self, alpha: float) -> Interval:
        """Of the excess."""
        found, ends = self.excess, []
        for outside, above in ((-1.0, True), (1.0, False)):
            inside = found
            for _ in range(30):
                middle = (inside + outside) / 2
                if self._log_evidence(middle, above) > -math.log(alpha):
                    outside = middle
                else:
                    inside = middle
            ends.append(outside)
        return Interval(found, *ends)

    def _log_evidence(self, excess: float, above: bool) -> float:
        """Against an excess of at most (`above`), or at least, so much in every step."""
        throughout = _mixture(*self.failures, *self.requests)
        apart = sum(_mixture(*step.failures, *step.requests) for step in self.steps)
        more, less = max(throughout, apart), min(throughout, apart)
        mixed = more + math.log1p(math.exp(less - more)) - math.log(2)
        return mixed - sum(_most_likely(*step.failures, *step.requests, excess, above) for step in self.steps)


@lru_cache(maxsize=64)  # steps before this one stay as they are
def _mixture(f0: int, f1: int, n0: int, n1: int) -> float:
    """Log of the chance of these failures in so many requests under the prior."""
    return sum(
        math.lgamma(f + A) + math.lgamma(n - f + B) - math.lgamma(n + A + B) - LOG_BETA
        for f, n in ((f0, n0), (f1, n1))
    )


@lru_cache(maxsize=64)
def _most_likely(f0: int, f1: int, n0: int, n1: int, excess: float, above: bool) -> float:
    """The largest log-likelihood of any two rates with an excess of at most (`above`), or at least, so
    much."""
    free = (f0 / n0 if n0 else 0.0), (f1 / n1 if n1 else 0.0)
    within = not (n0 and n1) or (free[1] - free[0] <= excess if above else free[1] - free[0] >= excess)
    if within:
        rates = free
    else:
        rate = (f0 + f1) / (n0 + n1) if excess == 0 else _restricted(f0, f1, n0, n1, excess)
        rates = rate, rate + excess
    return _log_likelihood(f0, n0, rates[0]) + _log_likelihood(f1, n1, rates[1])


def _restricted(f0: int, f1: int, n0: int, n1: int, excess: float) -> float:
    """The baseline's likeliest rate with the candidate's `excess` above it: the root of a cubic (Miettinen
    and Nurminen, Comparative analysis of two rates, 1985)."""
    n, f = n0 + n1, f0 + f1
    c2 = ((n1 + 2 * n0) * excess - n - f) / (3 * n)
    c1 = ((n0 * excess - n - 2 * f0) * excess + f) / (3 * n)
    c0 = f0 * excess * (1 - excess) / (2 * n)
    q = c2**3 - 1.5 * c1 * c2 + c0
    p = math.copysign(math.sqrt(max(c2**2 - c1, 0.0)), q)
    angle = (math.pi + math.acos(min(max(q / p**3, -1.0), 1.0))) / 3 if p else math.pi / 2
    return min(max(2 * p * math.cos(angle) - c2, 0.0, -excess), 1.0, 1.0 - excess)


def _log_likelihood(failures: int, requests: int, rate: float) -> float:
    rate = min(max(rate, 1e-12), 1 - 1e-12)
    return failures * math.log(rate) + (requests - failures) * math.log1p(-rate)


NOBODY = 0, 0.0  # requests and sum of a user not seen before


class Mean:
    """Mean of one arm's log-latencies; its variance allows for users whose requests are alike.

    A user's requests stay in one arm, so they are one draw, not many: the variance is the cluster-robust one
    (Deng et al., Applying the Delta Method in Metric Analytics, 2018). Each sum is updated in constant time.
    """

    def __init__(self) -> None:
        self.count = 0
        self._clusters = 0
        self._sum = 0.0
        self._users: dict[bytes, tuple[int, float]] = {}
        self._squares = self._crosses = self._counts = 0.0  # sums over users of s^2, n s, n^2

    def add(self, user: bytes, value: float) -> None:
        """One request; an empty `user` is a user of its own."""
        n, s = self._users.get(user, NOBODY)
        if user and (n or len(self._users) < MOST_USERS):
            self._users[user] = n + 1, s + value
        else:
            n, s = NOBODY
        if not n:
            self._clusters += 1
        self.count += 1
        self._sum += value
        self._squares += value * (2 * s + value)
        self._crosses += s + (n + 1) * value
        self._counts += 2 * n + 1

    @property
    def users(self) -> float:
        """How many, if all asked equally often, would tell as much: a few who ask most tell little."""
        return self.count**2 / self._counts if self.count else 0.0

    @property
    def mean(self) -> float:
        return self._sum / self.count

    @property
    def variance(self) -> float:
        """Of the mean."""
        mean, g = self.mean, self._clusters
        squares = self._squares - 2 * mean * self._crosses + mean**2 * self._counts
        return max(squares, 1e-12) / self.count**2 * g / (g - 1)


class Ratio:
    """Candidate's latency over the baseline's: of geometric means, by a normal-mixture confidence sequence.

    Robbins' mixture for the difference of the means of logs, with estimated variances: asymptotic in the
    number of users (Waudby-Smith et al., Time-uniform central limit theory, 2021).
    """

    def __init__(self) -> None:
        self.arms = Mean(), Mean()  # baseline, candidate

    def add(self, candidate: bool, user: bytes, seconds: float) -> None:
        """One request."""
        self.arms[candidate].add(user, math.log(max(seconds, 1e-6)))

    @property
    def users(self) -> float:
        """Of the arm that has fewer."""
        return min(arm.users for arm in self.arms)

    @property
    def log(self) -> float:
        """Of the estimate; 0 before both arms have answered."""
        baseline, candidate = self.arms
        return candidate.mean - baseline.mean if baseline.count and candidate.count else 0.0

    def interval(self, alpha: float) -> Interval | None:
        """Of the ratio; None before both arms have users enough."""
        baseline, candidate = self.arms
        if self.users < FEWEST:
            return None
        found = self.log
        v = candidate.variance + baseline.variance
        spread = (v + TAU**2) / v
        radius = math.sqrt(2 * v * (v + TAU**2) / TAU**2 * math.log(math.sqrt(spread) / alpha))
        return Interval(math.exp(found), math.exp(found - radius), math.exp(found + radius))


class Mismatch:
    """Whether users arrive at the arms in other shares than the policy's: then nothing else can be trusted.

    A Dirichlet-multinomial e-process (Lindon and Malek, Anytime-valid inference for multinomial count data,
    2022) over users seen for the first time.
    """

    STRENGTH = 100.0  # of the prior around the policy's share; any value is valid

    def __init__(self, share: float) -> None:
        """`share` is the candidate's, a fraction of the split."""
        self.share = share
        self.users = [0, 0]
        self._log_e = 0.0
        self._seen: set[bytes] = set()

    def add(self, candidate: bool, user: bytes) -> None:
        """One request; an empty `user` is a user of its own."""
        if user:
            if user in self._seen or len(self._seen) >= MOST_USERS:
                return
            self._seen.add(user)
        share = self.share if candidate else 1 - self.share
        if share > 0:
            mine, all_users = self.users[candidate], self.users[0] + self.users[1]
            expected = share * (self.STRENGTH + all_users)
            self._log_e += math.log((self.STRENGTH * share + mine) / expected)
        else:
            self._log_e = math.inf  # the policy sends nobody there
        self.users[candidate] += 1

    def shown(self, alpha: float = 0.001) -> bool:
        """Whether the shares are shown to be others."""
        return self._log_e > -math.log(alpha)
