"""The gate: measurements against limits, each check and the whole PASS, FAIL, INCONCLUSIVE or UNMEASURED.

A pure function. The burden of proof is the candidate's: missing evidence fails, and what the evidence cannot
settle is inconclusive, not passed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from bench.accuracy import Observation, by_task, guess_rate
from bench.latency import table
from bench.resources import human_size
from bench.statistics import (
    Interval,
    items_needed,
    mcnemar_p,
    median_ratio,
    quantile_ratio,
    requests_needed,
    tango_interval,
    wilson_interval,
)
from bench.verdict import Check, Gate, Limits, Measurements, Row, Verdict

__all__ = ["Check", "Gate", "Limits", "Measurements", "Row", "Verdict", "gate"]

# The bootstrap of fewer says little. A q-quantile wants 1 / (1 - q) besides, to have one request beyond it.
MIN_REQUESTS = 8

Fields = dict[str, Any]


def gate(measurements: Measurements, limits: Limits) -> Gate:
    """Holds measurements against limits. The worst check decides; without a single check nothing passes."""
    checks = [
        *_accuracy(measurements, limits),
        *_flip_rate(measurements, limits),
        *_divergence(measurements, limits),
        *_latency(measurements, limits),
        *_budget(measurements, limits),
    ]
    found = {check.verdict for check in checks}
    return Gate(
        baseline=measurements.baseline,
        candidate=measurements.candidate,
        verdict=next((verdict for verdict in Verdict if verdict in found), Verdict.FAIL),
        limits=limits,
        checks=checks,
        slices=_slices(measurements, limits),
    )


def _accuracy(m: Measurements, limits: Limits) -> Iterator[Check]:
    """Non-inferiority by the one-sided Tango bound of the paired difference.

    PASS: shown to be less than the margin below the baseline. FAIL: shown to be below the baseline, and the
    best estimate is beyond the margin. Asking for the whole interval to be beyond it would often send a model
    that is off by twice the margin to more measuring.
    """
    margin = limits.accuracy_margin
    if margin is None:
        return
    row: Fields = {"metric": "accuracy", "unit": "points", "limit": -margin}
    if absent := _no_answers(m):
        yield Check(**row, **absent)
        return
    row |= _difference(m.baseline_answers, m.candidate_answers, limits)
    n, delta, low, high = row["n"], row["delta"], row["ci_low"], row["ci_high"]
    sure = f"with {limits.confidence:.0%} confidence"
    guess = 100 * guess_rate(m.baseline_answers)
    if row["baseline"] - guess < limits.min_headroom:
        reason = (
            f"the baseline scores {row['baseline']:.1f} where guessing scores {guess:.1f}: "
            f"less than {limits.min_headroom:g} points above it there is too little to lose"
        )
        yield Check(**row, verdict=Verdict.INCONCLUSIVE, reason=reason)
    elif low > -margin:
        yield Check(**row, verdict=Verdict.PASS, reason=f"{low:+.1f} points or better {sure}")
    elif delta < -margin and high < 0:
        reason = f"{delta:+.1f} points, and below the baseline {sure} ({high:+.1f} at best)"
        yield Check(**row, verdict=Verdict.FAIL, reason=reason)
    else:
        needed, hope = _needed_items(m, margin / 100, delta / 100, 1 - limits.confidence)
        reason = f"may be {low:+.1f} points: {n:,} items cannot settle a margin of {margin:g}; {hope}"
        yield Check(**row, verdict=Verdict.INCONCLUSIVE, reason=reason, needed_n=needed)


def _needed_items(m: Measurements, margin: float, delta: float, alpha: float) -> tuple[int | None, str]:
    """How many items would settle an open comparison, and under which assumption."""
    n, flips = len(m.baseline_answers), sum(_flips(m.baseline_answers, m.candidate_answers))
    discordance = (flips + 1) / (n + 2)  # never zero, however few the items
    equal = items_needed(discordance, margin, alpha=alpha)
    if equal > n:
        return equal, f"about {equal:,} would if the two are equally good"
    if delta > -margin:
        as_measured = items_needed(discordance, margin, alpha=alpha, delta=delta)
        return as_measured, f"about {as_measured:,} would if the difference is as measured"
    return None, "more are unlikely to help"


def _flip_rate(m: Measurements, limits: Limits) -> Iterator[Check]:
    if limits.max_flip_rate is None:
        return
    row: Fields = {"metric": "answer_flip_rate", "unit": "fraction", "limit": limits.max_flip_rate}
    if absent := _no_answers(m):
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
        yield Check(**row, **_missing(m, "fidelity", "no next-token distributions were compared"))
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
        return Check(**row, **_missing(m, "latency", str(error)))
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
        return Check(**row, **_missing(m, row["metric"], reason))
    delta = None if baseline is None else value - baseline
    reason = f"{human_size(value)} where {human_size(row['limit'])} is the limit"
    verdict = Verdict.PASS if value <= row["limit"] else Verdict.FAIL
    return Check(**row, candidate=value, baseline=baseline, delta=delta, n=1, verdict=verdict, reason=reason)


def _slices(m: Measurements, limits: Limits) -> list[Row]:
    """Accuracy task by task: without limits, to see where a difference comes from."""
    if _no_answers(m):
        return []
    answers = {x.id: x for x in m.candidate_answers}
    return [
        Row(
            metric="accuracy",
            slice=task,
            unit="points",
            **_difference(rows, [answers[x.id] for x in rows], limits),
        )
        for task, rows in by_task(m.baseline_answers).items()
    ]


def _difference(baseline: Sequence[Observation], candidate: Sequence[Observation], limits: Limits) -> Fields:
    """The fields of a paired comparison of accuracy, in points."""
    right = {x.id: x.correct for x in candidate}
    n, before, after = len(baseline), sum(x.correct for x in baseline), sum(right.values())
    b = sum(right[x.id] and not x.correct for x in baseline)
    found = tango_interval(b, b + before - after, n, 2 * limits.confidence - 1)
    return {
        "baseline": 100 * before / n,
        "candidate": 100 * after / n,
        "delta": 100 * found.estimate,
        "ci_low": 100 * found.low,
        "ci_high": 100 * found.high,
        "n": n,
        "p_value": mcnemar_p(b, b + before - after),
    }


def _flips(baseline: Sequence[Observation], candidate: Sequence[Observation]) -> list[bool]:
    right = {x.id: x.correct for x in candidate}
    return [x.correct != right[x.id] for x in baseline]


def _no_answers(m: Measurements) -> Fields | None:
    """Why accuracy cannot be compared, if so: both must have answered the same items, each once."""
    baseline, candidate = [x.id for x in m.baseline_answers], [x.id for x in m.candidate_answers]
    if not baseline or not candidate:
        return _missing(m, "accuracy", "no answers of " + ("the candidate" if baseline else "the baseline"))
    if sorted(baseline) != sorted(set(candidate)) or len(candidate) != len(baseline):
        unpaired = len(set(baseline) ^ set(candidate))
        twice = len(baseline) - len(set(baseline)) + len(candidate) - len(set(candidate))
        return _missing(
            m, "accuracy", f"{unpaired} items lack one of the two answers, {twice} are answered twice"
        )
    return None


def _missing(m: Measurements, what: str, reason: str) -> Fields:
    """Verdict on evidence that is not there: excused by a reason, else a failure."""
    if what in m.unmeasured:
        return {"verdict": Verdict.UNMEASURED, "reason": m.unmeasured[what]}
    return {"verdict": Verdict.FAIL, "reason": f"missing evidence: {reason}"}


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
