"""A process that keeps memory of every request is caught; one whose allocator takes a step is not."""

from __future__ import annotations

import numpy as np
import pytest

from bench.gate import Limits, Measurements, Verdict, gate
from bench.growth import growth
from bench.resources import REQUESTS

LIMIT = 65_536
NOTHING = Limits(
    accuracy_margin=None, ttft_p50_ratio=None, e2e_ratio=None, max_bytes=None, max_peak_memory_bytes=None
)


def resident(kept: float, noise: float = 0.0, step: int = 0) -> list[int]:
    """100 MB and what is kept of each request, pages that come and go, and a step half way."""
    rng = np.random.default_rng(0)
    numbers = np.arange(REQUESTS)
    found = 1e8 + kept * numbers + noise * rng.standard_normal(REQUESTS) + step * (numbers >= REQUESTS / 2)
    return [int(value) for value in found]


@pytest.mark.parametrize(
    ("memory", "verdict"),
    [
        (resident(0), Verdict.PASS),
        (resident(0, noise=1e5), Verdict.PASS),
        (resident(0, step=10**6), Verdict.PASS),
        (resident(2 * LIMIT), Verdict.FAIL),
        (resident(2 * LIMIT, noise=1e5), Verdict.FAIL),
        (resident(2 * LIMIT, step=-(10**6)), Verdict.FAIL),
        (resident(LIMIT, noise=1e5), Verdict.INCONCLUSIVE),
    ],
    ids=["flat", "noise", "a step", "a leak", "a leak in noise", "a leak and a trim", "at the limit"],
)
def test_only_what_grows_with_requests_is_a_leak(memory: list[int], verdict: Verdict) -> None:
    limits = NOTHING.model_copy(update={"max_growth_bytes": LIMIT})
    (check,) = gate(Measurements("base", "cand", resident_bytes=memory), limits).checks
    assert check.verdict == verdict, check.reason
    assert (check.name, check.n, check.limit) == ("memory_growth", REQUESTS, LIMIT)


def test_the_slope_is_in_bytes_a_request() -> None:
    found = growth(resident(1000))
    assert (found.low, found.estimate, found.high) == (1000, 1000, 1000)


@pytest.mark.parametrize("seen", [[], [1, 2, 3]], ids=["none", "too few"])
def test_memory_that_was_not_followed_fails(seen: list[int]) -> None:
    limits = NOTHING.model_copy(update={"max_growth_bytes": LIMIT})
    (check,) = gate(Measurements("base", "cand", resident_bytes=seen), limits).checks
    assert check.verdict == Verdict.FAIL
    assert "missing evidence" in check.reason
