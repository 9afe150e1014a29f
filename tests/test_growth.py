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


def test_an_end_is_wrong_one_time_in_twenty() -> None:
    noise = np.random.default_rng(0).standard_normal((400, 12))
    found = [growth(list(row)) for row in noise]
    assert 0.02 < np.mean([one.low > 0 for one in found]) < 0.08
    assert 0.02 < np.mean([one.high < 0 for one in found]) < 0.08


def test_bounds_are_as_sure_as_the_limits_ask() -> None:
    measured = Measurements("a", "b", resident_bytes=resident(1000, noise=1e5))
    for confidence in (0.6, 0.99):
        limits = NOTHING.model_copy(update={"max_growth_bytes": LIMIT, "confidence": confidence})
        (check,) = gate(measured, limits).checks
        expected = growth(measured.resident_bytes, confidence)
        assert (check.ci_low, check.candidate, check.ci_high) == (
            expected.low,
            expected.estimate,
            expected.high,
        )


@pytest.mark.parametrize("seen", [[], [1, 2, 3]], ids=["none", "too few"])
def test_memory_that_was_not_followed_fails(seen: list[int]) -> None:
    limits = NOTHING.model_copy(update={"max_growth_bytes": LIMIT})
    (check,) = gate(Measurements("base", "cand", resident_bytes=seen), limits).checks
    assert check.verdict == Verdict.FAIL
    assert (
        f"missing evidence: resident memory was seen after {len(seen)} requests, 8 is the least"
        in check.reason
    )


def test_memory_that_no_device_was_here_for_is_unmeasured() -> None:
    limits = NOTHING.model_copy(update={"max_growth_bytes": LIMIT})
    measured = Measurements("base", "cand", unmeasured={"peak_memory_bytes": "no GPU here"})
    (check,) = gate(measured, limits).checks
    assert (check.verdict, check.reason, check.unit) == (Verdict.UNMEASURED, "no GPU here", "bytes")


@pytest.mark.parametrize(("kept", "verdict"), [(LIMIT, Verdict.PASS), (LIMIT + 1, Verdict.FAIL)])
def test_eight_requests_are_enough_and_the_limit_itself_passes(kept: int, verdict: Verdict) -> None:
    limits = NOTHING.model_copy(update={"max_growth_bytes": LIMIT})
    (check,) = gate(Measurements("a", "b", resident_bytes=[kept * i for i in range(8)]), limits).checks
    assert (check.verdict, check.candidate, check.ci_low, check.ci_high) == (verdict, kept, kept, kept)
    assert "65.5 kB kept of each request, 65.5 kB is the limit" in check.reason
