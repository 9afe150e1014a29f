"""What live traffic shows about a candidate: evidence that may be looked at after every request.

All of it is anytime-valid: the chance that a guard ever fires on arms that do not differ is at most its
alpha, however often it is looked at and whenever that ends.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

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


class Errors:
    """Requests and failures of candidate and baseline, compared exactly, with no normal approximation.

    The product of two Beta(1, 30) mixture martingales (rates of a few percent are expected, all are allowed),
    at its least over all rates with the candidate's `excess` above the baseline's: an e-process for that
    composite hypothesis (Ramdas et al., Game-theoretic statistics and safe anytime-valid inference, 2023).
    """

    def __init__(self) -> None:
        self.requests = [0, 0]  # baseline, candidate
        self.failures = [0, 0]

    def add(self, candidate: bool, failed: bool) -> None:
        """One request."""
        self.requests[candidate] += 1
        self.failures[candidate] += failed

    @property
    def excess(self) -> float:
        """Candidate's rate of failures less the baseline's."""
        rates = [f / n if n else 0.0 for f, n in zip(self.failures, self.requests, strict=True)]
        return rates[1] - rates[0]

    def worse(self, alpha: float) -> bool:
        """Whether the candidate is shown to fail more often."""
        return self.excess > 0 and self._log_evidence(0.0) > -math.log(alpha)

    def interval(self, alpha: float) -> Interval:
        """Of the excess."""
        found = self.excess
        low, high = -1.0, 1.0
        ends = []
        for outside in (low, high):
            inside = found
            for _ in range(30):
                middle = (inside + outside) / 2
                if self._log_evidence(middle) > -math.log(alpha):
                    outside = middle
                else:
                    inside = middle
            ends.append(outside)
        return Interval(found, *ends)

    def _log_evidence(self, excess: float) -> float:
        mixtures = sum(
            math.lgamma(f + A) + math.lgamma(n - f + B) - math.lgamma(n + A + B) - LOG_BETA
            for f, n in zip(self.failures, self.requests, strict=True)
        )
        return mixtures - self._most_likely(excess)

    def _most_likely(self, excess: float) -> float:
        """The largest log-likelihood of any two rates so far apart; concave in the baseline's rate."""
        (f0, f1), (n0, n1) = self.failures, self.requests
        if excess == 0:
            return _log_likelihood(f0 + f1, n0 + n1, (f0 + f1) / (n0 + n1))
        low, high = max(0.0, -excess), min(1.0, 1.0 - excess)
        for _ in range(60):
            left, right = low + (high - low) / 3, high - (high - low) / 3
            if self._likelihood(left, excess) < self._likelihood(right, excess):
                low = left
            else:
                high = right
        return self._likelihood((low + high) / 2, excess)

    def _likelihood(self, rate: float, excess: float) -> float:
        (f0, f1), (n0, n1) = self.failures, self.requests
        return _log_likelihood(f0, n0, rate) + _log_likelihood(f1, n1, rate + excess)


def _log_likelihood(failures: int, requests: int, rate: float) -> float:
    rate = min(max(rate, 1e-12), 1 - 1e-12)
    return failures * math.log(rate) + (requests - failures) * math.log1p(-rate)


class Mean:
    """Mean of one arm's log-latencies; its variance allows for users whose requests are alike.

    A user's requests stay in one arm, so they are one draw, not many: the variance is the cluster-robust one
    (Deng et al., Applying the Delta Method in Metric Analytics, 2018). Each sum is updated in constant time.
    """

    def __init__(self) -> None:
        self.count = 0
        self.clusters = 0
        self._sum = 0.0
        self._users: dict[bytes, tuple[int, float]] = {}
        self._squares = self._crosses = self._counts = 0.0  # sums over users of s^2, n s, n^2

    def add(self, user: bytes, value: float) -> None:
        """One request; an empty `user` is a user of its own."""
        n, s = self._users.get(user, (0, 0.0))
        if user and (n or len(self._users) < MOST_USERS):
            self._users[user] = n + 1, s + value
        else:
            n, s = 0, 0.0
        self.clusters += not n
        self.count += 1
        self._sum += value
        self._squares += (s + value) ** 2 - s**2
        self._crosses += (n + 1) * (s + value) - n * s
        self._counts += 2 * n + 1

    @property
    def mean(self) -> float:
        return self._sum / self.count

    @property
    def variance(self) -> float:
        """Of the mean."""
        mean, g = self.mean, self.clusters
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

    def interval(self, alpha: float) -> Interval | None:
        """Of the ratio; None before both arms have users enough."""
        baseline, candidate = self.arms
        if min(baseline.clusters, candidate.clusters) < FEWEST:
            return None
        found = candidate.mean - baseline.mean
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
            total = sum(self.users)
            self._log_e += math.log((self.STRENGTH * share + self.users[candidate]) / (self.STRENGTH + total))
            self._log_e -= math.log(share)
        else:
            self._log_e = math.inf  # the policy sends nobody there
        self.users[candidate] += 1

    def shown(self, alpha: float = 0.001) -> bool:
        """Whether the shares are shown to be others."""
        return self._log_e > -math.log(alpha)
