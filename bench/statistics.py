"""What may be concluded from paired measurements: intervals, tests and sample sizes. Pure functions.

Of `n` items answered by both, `b` are right only with the candidate and `c` only with the baseline, so the
estimated difference of accuracy is (b - c) / n. Proportions are fractions, not points.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """An estimate and its two-sided interval; each end is a one-sided bound at (1 + confidence) / 2."""

    estimate: float
    low: float
    high: float


def tango_interval(b: float, c: float, n: int, confidence: float) -> Interval:
    """Score interval of the difference of two paired proportions, candidate minus baseline.

    Inverts the score test whose nuisance parameter is the constrained maximum likelihood estimate: T. Tango,
    Statistics in Medicine 17 (1998) 891-908, equations 24-26. Defined for b = c = 0 and b = n too.

    Of graded scores between 0 and 1, b and c are the sums of what was won and lost: an item that loses 0.3 is
    0.3 of a discordant pair. A pair drawn with that chance has the same mean and no smaller variance than the
    difference itself (d**2 <= |d|), so the interval holds, if anything, more often than it says.
    """
    if n < 1 or b < 0 or c < 0 or b + c > n:
        raise ValueError(f"b={b}, c={c}, n={n} is not a paired table; expected n >= 1 and 0 <= b + c <= n")
    return Interval((b - c) / n, _tango_low(b, c, n, confidence), -_tango_low(c, b, n, confidence))


def _tango_low(b: float, c: float, n: int, confidence: float) -> float:
    from scipy.optimize import brentq

    z = NormalDist().inv_cdf((1 + confidence) / 2)
    top = (b - c) / n - 1e-9  # at the estimate itself both terms may vanish, which is no root
    return float(brentq(lambda d: tango_excess(b, c, n, d, z), -1.0, top, xtol=1e-12)) if top > -1 else -1.0


def tango_excess(b: Any, c: Any, n: int, d: float, z: float) -> Any:
    """The score at true difference d, minus z, times the standard deviation: no division, so no 0 / 0.

    Above zero exactly where the lower bound is above d. Of numbers or arrays.
    """
    B = (2 * n - b + c) * d - b - c
    root = np.sqrt(np.maximum(B * B + 8 * n * c * d * (1 - d), 0.0))
    loss = (root - B) / (4 * n)  # constrained P(only baseline)
    return b - c - n * d - z * np.sqrt(np.maximum(n * (2 * loss + d * (1 - d)), 0.0))


def mcnemar_p(b: int, c: int) -> float:
    """Two-sided p of the exact McNemar test: b of b + c discordant items against a fair coin; of graded
    scores, the exact sign test.
    """
    from scipy.special import bdtr

    return min(1.0, 2 * float(bdtr(min(b, c), b + c, 0.5))) if b + c else 1.0


def below_p(won: float, lost: float) -> float:
    """One-sided p of the candidate being no worse: Tango's score at a difference of 0, McNemar's z."""
    return NormalDist().cdf((won - lost) / math.sqrt(won + lost)) if won + lost else 1.0


def holm(p_values: Sequence[float], alpha: float) -> list[bool]:
    """Which claims hold if no more than a share `alpha` of families may hold a single false one.

    S. Holm, Scandinavian Journal of Statistics 6 (1979) 65-70: the smallest p against alpha / m, the next
    against alpha / (m - 1), and so on until the first that is larger. No independence is asked for.
    """
    held = [False] * len(p_values)
    for rank, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        if p_values[i] > alpha / (len(p_values) - rank):
            break
        held[i] = True
    return held


def wilson_interval(correct: float, n: int, confidence: float = 0.95) -> Interval:
    """Wilson's score interval of one proportion; scores between 0 and 1 vary less than it allows."""
    from statsmodels.stats.proportion import proportion_confint

    low, high = proportion_confint(correct, n, alpha=1 - confidence, method="wilson")
    return Interval(correct / n, float(low), float(high))


def exact_interval(count: int, n: int, confidence: float = 0.95) -> Interval:
    """Clopper and Pearson's interval of one proportion, Biometrika 26 (1934) 404-413: never too narrow."""
    from statsmodels.stats.proportion import proportion_confint

    low, high = proportion_confint(count, n, alpha=1 - confidence, method="beta")
    return Interval(count / n, float(low), float(high))


def items_needed(
    discordance: float, margin: float, power: float = 0.8, alpha: float = 0.05, delta: float = 0.0
) -> int:
    """Items for a non-inferiority test to pass with probability `power`, if the true difference is `delta`.

    `discordance` is the share of items on which the two disagree. The normal approximation of J. Nam,
    Biometrics 53 (1997) 1422-1430, never below what the score bound needs when not a single item disagrees.
    """
    from scipy.stats import norm

    if margin + delta <= 0:
        raise ValueError(f"no sample shows a true difference of {delta} to be above -{margin}")
    z_alpha, z_power = float(norm.ppf(1 - alpha)), float(norm.ppf(power))
    normal = (z_alpha + z_power) ** 2 * (discordance - delta**2) / (margin + delta) ** 2
    return math.ceil(max(normal, z_alpha**2 * (1 - margin) / margin))


def quantile_ratio(
    baseline: Array, candidate: Array, q: float, confidence: float = 0.9, resamples: int = 2000, seed: int = 0
) -> Interval:
    """Ratio candidate / baseline of the q-quantile of a latency; arrays [requests, repeats], paired by row.

    Requests are resampled whole, the same ones for both arms: repeats of one request are not independent, so
    resampling single rows would promise too much. They are not averaged first either, as that would hide the
    tail which p95 is there to show.
    """

    def statistic(rows: NDArray[np.intp]) -> Array:
        draws = [
            np.quantile(x[rows].reshape(*rows.shape[:-1], -1), q, axis=-1) for x in (baseline, candidate)
        ]
        return np.asarray(draws[1] / draws[0])

    return _bootstrap(baseline, candidate, statistic, confidence, resamples, seed)


def median_ratio(
    baseline: Array, candidate: Array, confidence: float = 0.9, resamples: int = 2000, seed: int = 0
) -> Interval:
    """Median over requests of the ratio candidate / baseline, each request at the median of its repeats.

    The size of a request cancels in its ratio, so this is the sharpest of the latency figures.
    """

    def statistic(rows: NDArray[np.intp]) -> Array:
        ratios = np.median(candidate, axis=1) / np.median(baseline, axis=1)
        return np.asarray(np.median(ratios[rows], axis=-1))

    return _bootstrap(baseline, candidate, statistic, confidence, resamples, seed)


def _bootstrap(
    baseline: Array, candidate: Array, statistic: Any, confidence: float, resamples: int, seed: int
) -> Interval:
    """Percentile bootstrap over requests (rows)."""
    from scipy.stats import bootstrap

    if baseline.shape != candidate.shape or baseline.ndim != 2 or len(baseline) < 2:
        raise ValueError(
            f"found {baseline.shape}, {candidate.shape}; expected two equal [requests >= 2, repeats]"
        )
    rows = np.arange(len(baseline))
    result = bootstrap(
        (rows,),
        lambda drawn, axis: statistic(drawn),
        n_resamples=resamples,
        batch=200,
        vectorized=True,
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    ends = result.confidence_interval
    return Interval(float(statistic(rows)), float(ends.low), float(ends.high))


def requests_needed(requests: int, ratio: Interval, limit: float) -> int | None:
    """About how many requests would bring the nearer end of the interval to the limit.

    Widths on the log scale shrink as one over the root of the number of requests. None if the estimate is the
    limit itself.
    """
    gap = math.log(limit / ratio.estimate)
    width = math.log(ratio.high / ratio.estimate) if gap > 0 else math.log(ratio.low / ratio.estimate)
    return math.ceil(requests * (width / gap) ** 2) if gap else None
