"""The gate: measurements against limits, each check and the whole PASS, FAIL, INCONCLUSIVE or UNMEASURED.

A pure function. The burden of proof is the candidate's: missing evidence fails, and what the evidence cannot
settle is inconclusive, not passed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from datetime import date

import numpy as np

from bench.accuracy import Observation
from bench.latency import table
from bench.noninferiority import no_answers, overall, slices
from bench.resources import human_size
from bench.statistics import Interval, median_ratio, quantile_ratio, requests_needed, wilson_interval
from bench.verdict import Check, Fields, Gate, Limits, Measurements, Row, Verdict, missing
from bench.waivers import waive

__all__ = ["Check", "Gate", "Limits", "Measurements", "Row", "Verdict", "gate"]

# The bootstrap of fewer says little. A q-quantile wants 1 / (1 - q) besides, to have one request beyond it.
MIN_REQUESTS = 8


def gate(measurements: Measurements, limits: Limits, today: date | None = None) -> Gate:
    """Holds measurements against limits. The worst check not waived decides; with none nothing passes.

    `today`, by default the machine's, is the day on which waivers are looked at.
    """
    slice_checks, rows = slices(measurements, limits)
    made = [
        *overall(measurements, limits),
        *slice_checks,
        *_flip_rate(measurements, limits),
        *_divergence(measurements, limits),
        *_latency(measurements, limits),
        *_budget(measurements, limits),
    ]
    checks, waivers = waive(made, limits.waivers, today or date.today())
    found = {check.verdict for check in checks if not check.waived}
    return Gate(
        baseline=measurements.baseline,
        candidate=measurements.candidate,
        verdict=next((verdict for verdict in Verdict if verdict in found), Verdict.FAIL),
        limits=limits,
        checks=checks,
        slices=rows,
        waivers=waivers,
    )


def _flip_rate(m: Measurements, limits: Limits) -> Iterator[Check]:
    if limits.max_flip_rate is None:
        return
    row: Fields = {"metric": "answer_flip_rate", "unit": "fraction", "limit": limits.max_flip_rate}
    if absent := no_answers(m):
        yield Check(**row, **absent)
        return
    flips = _flips(m.baseline_answers, m.candidate_answers)
    found = wilson_interval(sum(flips), len(flips), 2 * limits.confidence - 1)
    yield _at_most({**row, "candidate": found.estimate, "n": len(flips)}, found)


def _divergence(m: Measurements, limits: Limits) -> Iterator[Check]:
    if limits.max_kl is None:
        return
    row: Fields = {"metric": "kl_mean", "unit": "nats", "limit": limits.max_kl}
    if m.fidelity is None:
        yield Check(**row, **missing(m, "fidelity", "no next-token distributions were compared"))
        return
    found = Interval(m.fidelity.kl_mean, m.fidelity.kl_low, m.fidelity.kl_high)
    yield _at_most({**row, "candidate": found.estimate, "n": m.fidelity.positions}, found)


def _latency(m: Measurements, limits: Limits) -> Iterator[Check]:
    """Ratios of quantiles, and the median of the per-request ratio."""
    for metric, q, limit in (
        ("ttft_ms", 0.5, limits.ttft_p50_ratio),
        ("ttft_ms", 0.95, limits.ttft_p95_ratio),
        ("itl_ms", 0.5, limits.itl_p50_ratio),
        ("itl_ms", 0.95, limits.itl_p95_ratio),
        ("e2e_latency_ms", None, limits.e2e_ratio),
    ):
        if limit is not None:
            yield _latency_ratio(m, metric, q, limit, limits.confidence)


def _latency_ratio(m: Measurements, metric: str, q: float | None, limit: float, confidence: float) -> Check:
    """Bounds of a bootstrap over requests: of the ratio of q-quantiles or, without q, of the median ratio."""
    name = metric if q is None else f"{metric} p{100 * q:.0f}"
    row: Fields = {"metric": name, "unit": "ms", "limit": limit, "relative": True}
    try:
        baseline, candidate = table(m.baseline_timings, metric), table(m.candidate_timings, metric)
        work = table(m.baseline_timings, "output_tokens"), table(m.candidate_timings, "output_tokens")
        if not np.array_equal(work[0], work[1]):
            raise ValueError("baseline and candidate did not answer the same requests with as many tokens")
    except ValueError as error:
        return Check(**row, **missing(m, "latency", str(error)))
    n, at = len(baseline), q or 0.5
    before, after = (float(np.quantile(x, at)) for x in (baseline, candidate))
    row |= {"baseline": before, "candidate": after, "n": n}
    least = max(MIN_REQUESTS, math.ceil(1 / (1 - at) - 1e-9))
    if n < least:
        reason = f"{n} requests are too few to bound this figure; {least} is the least"
        return Check(**row, verdict=Verdict.INCONCLUSIVE, reason=reason, needed_n=least)
    ends = 2 * confidence - 1
    found = quantile_ratio(baseline, candidate, q, ends) if q else median_ratio(baseline, candidate, ends)
    return _at_most({**row, "delta": found.estimate}, found, requests_needed(n, found, limit))


def _budget(m: Measurements, limits: Limits) -> Iterator[Check]:
    """Hard limits: no interval and no tolerance. Memory counts only if measured as the limit says."""
    if limits.max_bytes is not None:
        row: Fields = {"metric": "bytes", "unit": "bytes", "limit": limits.max_bytes}
        yield _within(row, m.bytes, m.baseline_bytes, m)
    if limits.max_peak_memory_bytes is not None:
        conditions = f"context {limits.context} x batch {limits.batch}"
        row = {"metric": "peak_memory_bytes", "unit": "bytes", "limit": limits.max_peak_memory_bytes}
        peak = m.peak_memory_bytes if m.memory_at == (limits.context, limits.batch) else None
        yield _within({**row, "slice": conditions}, peak, m.baseline_peak_memory_bytes, m)


def _within(row: Fields, value: int | None, baseline: int | None, m: Measurements) -> Check:
    if value is None:
        reason = f"not measured at {row['slice']}" if "slice" in row else "not measured"
        return Check(**row, **missing(m, row["metric"], reason))
    delta = None if baseline is None else value - baseline
    reason = f"{human_size(value)} where {human_size(row['limit'])} is the limit"
    verdict = Verdict.PASS if value <= row["limit"] else Verdict.FAIL
    return Check(**row, candidate=value, baseline=baseline, delta=delta, n=1, verdict=verdict, reason=reason)


def _flips(baseline: Sequence[Observation], candidate: Sequence[Observation]) -> list[bool]:
    right = {x.id: x.correct for x in candidate}
    return [x.correct != right[x.id] for x in baseline]


def _at_most(row: Fields, found: Interval, needed: int | None = None) -> Check:
    """PASS if the upper bound is within the limit, FAIL if the lower bound is beyond it."""
    row |= {"ci_low": found.low, "ci_high": found.high}
    bounds = f"{found.low:.3g} to {found.high:.3g}, limit {row['limit']:g}"
    if found.high <= row["limit"]:
        return Check(**row, verdict=Verdict.PASS, reason=bounds)
    if found.low > row["limit"]:
        return Check(**row, verdict=Verdict.FAIL, reason=bounds)
    more = f"; about {needed:,} would settle it" if needed else ""
    return Check(**row, verdict=Verdict.INCONCLUSIVE, reason=bounds + more, needed_n=needed)
