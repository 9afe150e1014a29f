"""Does a process keep something of every request: the slope of its resident memory over requests.

The slope is Theil and Sen's, the median over all pairs of requests (P. Sen, J. American Statistical
Association 63 (1968) 1379-1389): an allocator that takes one more arena somewhere does not look like a leak.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bench.statistics import Interval
from bench.verdict import Check, Fields, Limits, Measurements, Verdict, missing
from engines.units import human_size

MIN_REQUESTS = 8  # the interval of fewer says little


def growth(resident: Sequence[float], confidence: float = 0.95) -> Interval:
    """Bytes a request, from the resident bytes after each of equal requests; each end a one-sided bound."""
    from scipy.stats import theilslopes

    found = theilslopes(resident, alpha=2 * confidence - 1)
    return Interval(float(found.slope), float(found.low_slope), float(found.high_slope))


def grows(m: Measurements, limits: Limits) -> Iterator[Check]:
    """PASS: shown to keep no more than the limit of each request. FAIL: shown to keep more."""
    if limits.max_growth_bytes is None:
        return
    n = len(m.resident_bytes)
    row: Fields = {"metric": "memory_growth", "unit": "bytes", "limit": limits.max_growth_bytes}
    if n < MIN_REQUESTS:
        reason = f"resident memory was seen after {n} requests, {MIN_REQUESTS} is the least"
        yield Check(**row, **missing(m, "peak_memory_bytes", reason))
        return
    found = growth(m.resident_bytes, limits.confidence)
    row |= {"candidate": found.estimate, "ci_low": found.low, "ci_high": found.high, "n": n}
    kept = f"{human_size(found.low)} to {human_size(found.high)} kept of each request"
    reason = f"{kept}, {human_size(limits.max_growth_bytes)} is the limit"
    yield Check(**row, verdict=_verdict(found, limits.max_growth_bytes), reason=reason)


def _verdict(found: Interval, limit: int) -> Verdict:
    if found.high <= limit:
        return Verdict.PASS
    return Verdict.FAIL if found.low > limit else Verdict.INCONCLUSIVE
