"""Quantiles with intervals that assume nothing of the distribution."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import lru_cache

from serve.rollout.evidence import Interval

QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
OUTSIDE = 0.025  # chance of the quantile beyond either end


def quantiles(values: Iterable[float]) -> dict[str, Interval | None]:
    """Order statistics, each between two others; None where so few values have no such ends.

    The quantile lies between the ends with 95 % at least (David and Nagaraja, Order Statistics, 7.1), if the
    values are independent: those of one user are alike, and then the interval is too short.
    """
    ordered = sorted(values)
    found: dict[str, Interval | None] = {}
    for name, q in QUANTILES.items():
        n = len(ordered)
        low, high = _ranks(n, q)
        ranks = (math.ceil(n * q), low, high)
        found[name] = Interval(*(ordered[rank - 1] for rank in ranks)) if low > 0 and high <= n else None
    return found


@lru_cache(maxsize=256)
def _ranks(n: int, q: float) -> tuple[int, int]:
    """Ranks of the two ends, from 1; 0 or n + 1 where there is none."""
    if not n:
        return 0, 1
    # Of how many values lie below the quantile: binomial, summed from where its lower tail is nothing.
    k = max(math.floor(n * q - 10 * math.sqrt(n * q * (1 - q))), 0)
    log_chance = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
    chance = math.exp(log_chance + k * math.log(q) + (n - k) * math.log1p(-q))
    below, low = chance, None
    while below < 1 - OUTSIDE and k < n:
        if low is None and below > OUTSIDE:
            low = k
        chance *= (n - k) / (k + 1) * q / (1 - q)
        k += 1
        below += chance
    return k if low is None else low, k + 1
