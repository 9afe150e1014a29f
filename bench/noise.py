"""Is the candidate as fast as the baseline, to a limit, and was the run quiet enough to tell.

The baseline is timed as two arms (A/A). Their true ratio is 1, so what their interval says otherwise is the
run's: noise makes it wide, an arm's place or its process's luck shifts it. A limit of 1.15 can be judged only
where the same statistic of these two, interval and all, stays between 1 / 1.15 and 1.15: a run that cannot
tell the baseline from one that misses the limit says nothing of a candidate, neither PASS nor FAIL. This is a
test of equivalence (D. Schuirmann, J. Pharmacokinetics and Biopharmaceutics 15 (1987) 657-680).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from bench.latency import Timing, table
from bench.statistics import Array, Interval, median_ratio, quantile_ratio, requests_needed
from bench.verdict import Check, Fields, Limits, Measurements, Verdict, at_most, missing

# The bootstrap of fewer says little. A q-quantile wants 1 / (1 - q) besides, to have one request beyond it.
MIN_REQUESTS = 8
NEAR = 1.05  # what is asked of the baseline against itself where a limit is nearer to 1 than this
Figure = tuple[str, float | None]  # a metric, and which quantile of it; without one the median ratio


def figures(limits: Limits, load: float = 0.0) -> dict[Figure, float]:
    """What is limited, and to which ratio. Under load the whole answer, wait and all, request by request: who
    waits and who does not is two groups, and a quantile over both jumps.
    """
    asked: dict[Figure, float | None] = {
        ("ttft_ms", 0.5): limits.ttft_p50_ratio,
        ("ttft_ms", 0.95): limits.ttft_p95_ratio,
        ("itl_ms", 0.5): limits.itl_p50_ratio,
        ("itl_ms", 0.95): limits.itl_p95_ratio,
        ("e2e_latency_ms", None): limits.e2e_ratio,
    }
    return {
        (metric, q): limit
        for (metric, q), limit in asked.items()
        if limit is not None and (not load or metric == "e2e_latency_ms")
    }


def slower(m: Measurements, limits: Limits) -> Iterator[Check]:
    """A check of every latency that has a limit, one request after the other and at every load: bootstrap
    bounds over requests, of the ratio of quantiles or of the median ratio of a request.
    """
    for load in _loads(m.baseline_timings):
        measured = replace(
            m,
            baseline_timings=_at(m.baseline_timings, load),
            again_timings=_at(m.again_timings, load),
            candidate_timings=_at(m.candidate_timings, load),
        )
        for (metric, q), limit in figures(limits, load).items():
            yield _check(measured, metric, q, limit, limits.confidence, load)


def quiet(noise: Interval, limit: float) -> bool:
    """Whether the baseline against itself is near enough to 1 for this limit to be judged."""
    return 1 / _near(limit) < noise.low and noise.high < _near(limit)


def steady(baseline: Sequence[Timing], again: Sequence[Timing], limits: Limits) -> bool:
    """Whether every limit can be judged, or more repeats would not help as there are too few requests."""
    return all(quiet(noise, limit) for _, limit, noise, _ in _noises(baseline, again, limits))


def noise_lines(baseline: Sequence[Timing], again: Sequence[Timing], limits: Limits) -> Iterator[str]:
    """What the baseline is against itself by every figure that has a limit."""
    for name, limit, noise, repeats in _noises(baseline, again, limits):
        verdict = "" if quiet(noise, limit) else f": too noisy for a limit of {limit:g}"
        yield f"{name} {told(noise)}, {repeats} repeats{verdict}"


def _noises(
    baseline: Sequence[Timing], again: Sequence[Timing], limits: Limits
) -> Iterator[tuple[str, float, Interval, int]]:
    """Name, limit, the baseline against itself, and repeats; of figures that have enough requests."""
    for load in _loads(baseline):
        for (metric, q), limit in figures(limits, load).items():
            first, second = (table(_at(timings, load), metric) for timings in (baseline, again))
            if len(first) >= _least(q):
                name = f"{_name(metric, q)} at {load_name(load)}" if load else _name(metric, q)
                yield name, limit, ratio(first, second, q, limits.confidence), first.shape[1]


def ratio(baseline: Array, candidate: Array, q: float | None, confidence: float) -> Interval:
    """candidate / baseline, each end a one-sided bound; arrays [requests, repeats]."""
    ends = 2 * confidence - 1
    return quantile_ratio(baseline, candidate, q, ends) if q else median_ratio(baseline, candidate, ends)


def told(found: Interval) -> str:
    """`1.02 (0.97 to 1.08)`."""
    return f"{found.estimate:.3g} ({found.low:.3g} to {found.high:.3g})"


def judged(
    row: Fields, baseline: Array, again: Array, candidate: Array, q: float | None, confidence: float
) -> Check:
    """PASS, FAIL or, where the run is too noisy for the row's limit or too short, INCONCLUSIVE; arrays
    [requests, repeats].
    """
    n, at, limit = len(baseline), q or 0.5, row["limit"]
    before, after = (float(np.quantile(x, at)) for x in (baseline, candidate))
    row = row | {"baseline": before, "candidate": after, "n": n}
    if n < _least(q):
        reason = f"{n} requests are too few to bound this figure; {_least(q)} is the least"
        return Check(**row, verdict=Verdict.INCONCLUSIVE, reason=reason, needed_n=_least(q))
    found, noise = ratio(baseline, candidate, q, confidence), ratio(baseline, again, q, confidence)
    row |= {"delta": found.estimate, "ci_low": found.low, "ci_high": found.high}
    row |= {"noise": noise.estimate, "noise_low": noise.low, "noise_high": noise.high}
    if not quiet(noise, limit):
        near = _near(limit)
        reason = (
            f"too noisy to tell: the baseline against itself is {told(noise)}, where this limit asks for "
            f"{1 / near:.3g} to {near:.3g}; measure on a quieter machine, or with more requests"
        )
        needed = _requests_to_be_quiet(n, noise, near)
        return Check(**row, verdict=Verdict.INCONCLUSIVE, reason=reason, needed_n=needed)
    return at_most(row, found, requests_needed(n, found, limit), f"; baseline against itself {told(noise)}")


def load_name(load: float) -> str:
    """As a slice of the gate and of the breakdown is called."""
    return f"load {load:g}"


def _check(
    m: Measurements, metric: str, q: float | None, limit: float, confidence: float, load: float
) -> Check:
    row: Fields = {"metric": _name(metric, q), "unit": "ms", "limit": limit, "relative": True}
    row |= {"slice": load_name(load)} if load else {}
    try:
        sides = (m.baseline_timings, m.again_timings, m.candidate_timings)
        baseline, again, candidate = (table(timings, metric) for timings in sides)
        work = [table(timings, "output_tokens") for timings in sides]
        if not np.array_equal(work[0], work[1]) or not np.array_equal(work[0], work[2]):
            raise ValueError("the arms did not answer the same requests with as many tokens")
    except ValueError as error:
        return Check(**row, **missing(m, "latency", str(error)))
    return judged(row, baseline, again, candidate, q, confidence)


def _loads(timings: Sequence[Timing]) -> list[float]:
    return sorted({timing.load for timing in timings}) or [0.0]


def _at(timings: Sequence[Timing], load: float) -> list[Timing]:
    return [timing for timing in timings if timing.load == load]


def _name(metric: str, q: float | None) -> str:
    return metric if q is None else f"{metric} p{100 * q:.0f}"


def _near(limit: float) -> float:
    return max(limit, 1 / limit, NEAR)


def _requests_to_be_quiet(requests: int, noise: Interval, near: float) -> int | None:
    """About how many, as widths on the log scale shrink; None where the estimate itself is not near."""
    gap = math.log(near) - abs(math.log(noise.estimate))
    width = max(math.log(noise.high / noise.estimate), math.log(noise.estimate / noise.low))
    return math.ceil(requests * (width / gap) ** 2) if gap > 0 else None


def _least(q: float | None) -> int:
    return max(MIN_REQUESTS, math.ceil(1 / (1 - (q or 0.5)) - 1e-9))
