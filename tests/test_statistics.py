"""Intervals and tests against published examples, other implementations, brute force and simulation."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.stats import norm
from statsmodels.stats.contingency_tables import mcnemar

from bench.statistics import (
    Interval,
    exact_interval,
    items_needed,
    mcnemar_p,
    median_ratio,
    quantile_ratio,
    requests_needed,
    tango_interval,
    wilson_interval,
)


def test_tango_worked_example() -> None:
    """Tango 1998, section 6.1 (contact lenses, table V): n = 44, b = 0, c = 1, lower 90 % limit -0.096."""
    assert round(tango_interval(0, 1, 44, 0.90).low, 3) == -0.096


@pytest.mark.parametrize(
    ("b", "c", "n", "low", "high"),
    [  # R 4.4.2, PropCIs 0.3-0, scoreci.mp(c, b, n): its bisection stops at 1e-7
        (20, 40, 160, -0.2180642, -0.0308646),
        (0, 0, 100, -0.0369934, 0.0369934),
        (7, 1, 50, 0.0116197, 0.2465808),
        (0, 5, 25, -0.3913095, -0.0401692),
        (2, 2, 30, -0.1621800, 0.1621800),
        (0, 50, 50, -1.0, -0.8573048),
        (4, 11, 320, -0.0496838, 0.0020972),
    ],
)
def test_tango_equals_propcis(b: int, c: int, n: int, low: float, high: float) -> None:
    interval = tango_interval(b, c, n, 0.95)
    assert interval.low == pytest.approx(low, abs=2e-7)
    assert interval.high == pytest.approx(high, abs=2e-7)


def score_by_brute_force(b: int, c: int, n: int, d: float) -> float:
    """The score statistic at true difference d, its nuisance parameter found by maximising the likelihood."""

    def minus_log_likelihood(loss: float) -> float:
        cells = np.array([loss + d, loss, 1 - 2 * loss - d])
        counts = np.array([b, c, n - b - c])
        return -float(np.sum(counts[counts > 0] * np.log(np.maximum(cells[counts > 0], 1e-300))))

    bounds = (max(0.0, -d), (1 - d) / 2)
    loss = minimize_scalar(minus_log_likelihood, bounds=bounds, method="bounded", options={"xatol": 1e-12}).x
    return float((b - c - n * d) / np.sqrt(n * (2 * loss + d - d * d)))


@pytest.mark.parametrize(
    ("b", "c", "n"), [(3, 9, 40), (0, 4, 12), (6, 0, 30), (17, 25, 1000), (5, 7, 12), (1, 1, 2)]
)
@pytest.mark.parametrize("confidence", [0.8, 0.9, 0.99])
def test_tango_ends_are_where_the_score_test_turns(b: int, c: int, n: int, confidence: float) -> None:
    interval, z = tango_interval(b, c, n, confidence), norm.ppf((1 + confidence) / 2)
    assert score_by_brute_force(b, c, n, interval.low) == pytest.approx(z, abs=2e-4)
    assert score_by_brute_force(b, c, n, interval.high) == pytest.approx(-z, abs=2e-4)


def test_tango_at_the_edges() -> None:
    for n in (1, 2, 7, 1000):
        z = norm.ppf(0.95)
        none = tango_interval(0, 0, n, 0.9)
        assert (-none.low, none.high) == pytest.approx((z * z / (n + z * z),) * 2, abs=1e-9)
        assert tango_interval(n, 0, n, 0.9).high == 1.0
        assert -1 < tango_interval(n, 0, n, 0.9).low < 1
        assert tango_interval(0, n, n, 0.9).low == tango_interval(0, n - 1e-10, n, 0.9).low == -1.0
    mirrored, straight = tango_interval(4, 11, 320, 0.9), tango_interval(11, 4, 320, 0.9)
    assert (mirrored.low, mirrored.high) == pytest.approx((-straight.high, -straight.low))


@pytest.mark.parametrize(("b", "c", "n"), [(0, 0, 0), (-1, 0, 5), (3, 3, 5)])
def test_tango_refuses_what_is_no_table(b: int, c: int, n: int) -> None:
    with pytest.raises(ValueError, match="not a paired table"):
        tango_interval(b, c, n, 0.9)


@pytest.mark.parametrize(("n", "gain", "loss"), [(1000, 0.03, 0.05), (100, 0.02, 0.10), (300, 0.01, 0.01)])
def test_tango_one_sided_coverage(n: int, gain: float, loss: float) -> None:
    """The one-sided 95 % bound misses the true difference about 5 % of the time."""
    counts = np.random.default_rng(7).multinomial(n, [gain, loss, 1 - gain - loss], size=1500)
    tables, times = np.unique(counts[:, :2], axis=0, return_counts=True)
    missed = [tango_interval(int(b), int(c), n, 0.9).low > gain - loss for b, c in tables]
    assert 0.025 < float(np.average(missed, weights=times)) < 0.07


@pytest.mark.parametrize(("b", "c"), [(0, 0), (1, 0), (5, 5), (12, 2), (3, 30), (400, 350)])
def test_mcnemar_equals_statsmodels(b: int, c: int) -> None:
    assert mcnemar_p(b, c) == pytest.approx(float(mcnemar([[10, b], [c, 20]], exact=True).pvalue), rel=1e-9)


def test_wilson_by_hand() -> None:
    """Newcombe 1998, table I: 81 of 263 at 95 % is 0.2553 to 0.3662."""
    interval = wilson_interval(81, 263)
    assert (interval.estimate, round(interval.low, 4), round(interval.high, 4)) == (81 / 263, 0.2553, 0.3662)


def test_clopper_and_pearson_by_hand() -> None:
    """The same table: 81 of 263 is 0.2527 to 0.3676; and 0 of 10 ends where (1 - p)^10 is 2.5 %."""
    interval = exact_interval(81, 263)
    assert (interval.estimate, round(interval.low, 4), round(interval.high, 4)) == (81 / 263, 0.2527, 0.3676)
    with pytest.raises(FrozenInstanceError):
        interval.low = 0.0
    assert exact_interval(0, 10) == Interval(0.0, 0.0, pytest.approx(1 - 0.025**0.1))


@pytest.mark.parametrize(("margin", "n"), [(0.01, 3092), (0.02, 773), (0.03, 344)])
def test_items_needed_at_five_percent_discordance(margin: float, n: int) -> None:
    assert items_needed(0.05, margin) == n


def test_items_needed_where_the_candidate_is_worse_by_hand() -> None:
    """(1.6449 + 0.8416)^2 (0.05 - 0.01^2) / (0.03 - 0.01)^2 = 771.3."""
    assert items_needed(0.05, 0.03, delta=-0.01) == 772


def test_items_needed_gives_the_promised_power() -> None:
    n = items_needed(0.06, 0.02)
    counts = np.random.default_rng(1).multinomial(n, [0.03, 0.03, 0.94], size=600)
    assert 0.75 < np.mean([tango_interval(int(b), int(c), n, 0.9).low > -0.02 for b, c, _ in counts]) < 0.87


def test_items_needed_without_a_disagreement_is_what_the_bound_needs() -> None:
    n = items_needed(0.0, 0.01)
    assert tango_interval(0, 0, n, 0.9).low > -0.01 > tango_interval(0, 0, n - 1, 0.9).low - 1e-12


def test_no_sample_shows_what_is_not_true() -> None:
    with pytest.raises(ValueError, match="no sample"):
        items_needed(0.05, 0.01, delta=-0.01)


def latencies(
    rng: np.random.Generator, n: int, ratio: float, repeats: int = 3
) -> tuple[np.ndarray, np.ndarray]:
    """Request sizes spread by half a log unit, repeats jittering by 5 % about their request."""
    size = rng.lognormal(0, 0.5, (n, 1)) * rng.lognormal(0, 0.05, (n, 1))
    return size * rng.lognormal(0, 0.05, (n, repeats)), ratio * size * rng.lognormal(0, 0.05, (n, repeats))


def test_identical_arms_have_ratio_one() -> None:
    baseline, _ = latencies(np.random.default_rng(0), 30, 1.0)
    for interval in (quantile_ratio(baseline, baseline, 0.95), median_ratio(baseline, baseline)):
        assert interval == Interval(1.0, 1.0, 1.0)


def test_ratio_is_that_of_the_quantiles_and_the_seed_fixes_the_bounds() -> None:
    baseline, candidate = latencies(np.random.default_rng(0), 50, 1.3)
    interval = quantile_ratio(baseline, candidate, 0.5)
    assert interval.estimate == pytest.approx(np.median(candidate) / np.median(baseline))
    assert interval.low < 1.3 < interval.high
    assert interval == quantile_ratio(baseline, candidate, 0.5)
    assert interval != quantile_ratio(baseline, candidate, 0.5, seed=1)


def test_two_requests_are_enough() -> None:
    baseline = np.array([[1.0], [2.0]])
    assert median_ratio(baseline, 3 * baseline) == Interval(3.0, 3.0, 3.0)


def test_pairing_narrows_the_interval() -> None:
    baseline, candidate = latencies(np.random.default_rng(3), 200, 1.1)
    shuffled = candidate[np.random.default_rng(0).permutation(200)]
    paired, unpaired = median_ratio(baseline, candidate), median_ratio(baseline, shuffled)
    assert (unpaired.high - unpaired.low) > 3 * (paired.high - paired.low)


def test_repeats_of_a_request_are_no_extra_requests() -> None:
    """Copying every repeat ten times adds no information, so it must not narrow the interval."""
    baseline, candidate = latencies(np.random.default_rng(4), 40, 1.2)
    once = quantile_ratio(baseline, candidate, 0.5)
    often = quantile_ratio(np.tile(baseline, 10), np.tile(candidate, 10), 0.5)
    assert (often.high - often.low) > 0.8 * (once.high - once.low)


def test_upper_bound_coverage() -> None:
    rng, runs = np.random.default_rng(11), 300
    pairs = [latencies(rng, 40, 1.1) for _ in range(runs)]
    median = [median_ratio(*pair, resamples=300).high < 1.1 for pair in pairs]
    p50 = [quantile_ratio(*pair, 0.5, resamples=300).high < 1.1 for pair in pairs]
    assert 0.01 < np.mean(median) < 0.10
    assert np.mean(p50) < 0.10


@pytest.mark.parametrize(
    ("baseline", "candidate"), [(np.ones((1, 3)), np.ones((1, 3))), (np.ones((4, 3)), np.ones((5, 3)))]
)
def test_unpaired_or_single_requests_are_refused(baseline: np.ndarray, candidate: np.ndarray) -> None:
    with pytest.raises(ValueError, match="expected two equal"):
        median_ratio(baseline, candidate)


def test_requests_needed_follows_the_root_law() -> None:
    wide = Interval(1.0, 0.5, 1.2)  # the end on the limit's side is what counts
    assert requests_needed(50, wide, 1.1) == pytest.approx(50 * (np.log(1.2) / np.log(1.1)) ** 2, abs=1)
    assert requests_needed(50, Interval(1.2, 1.0, 1.9), 1.1) == pytest.approx(
        50 * (np.log(1.2) / np.log(1.2 / 1.1)) ** 2, abs=1
    )
    assert requests_needed(50, Interval(1.1, 1.0, 1.2), 1.1) is None
