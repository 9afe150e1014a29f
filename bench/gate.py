"""The gate: measurements against limits, each check and the whole PASS, FAIL, INCONCLUSIVE or UNMEASURED.

A pure function. The burden of proof is the candidate's: missing evidence fails, and what the evidence cannot
settle is inconclusive, not passed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import date

from bench.accuracy import Observation
from bench.growth import grows
from bench.noise import slower
from bench.noninferiority import no_answers, overall, slices
from bench.statistics import Interval, wilson_interval
from bench.verdict import Check, Fields, Gate, Limits, Measurements, Row, Verdict, at_most, missing
from bench.waivers import waive
from engines.units import human_size

__all__ = ["Check", "Gate", "Limits", "Measurements", "Row", "Verdict", "gate"]


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
        *slower(measurements, limits),
        *_budget(measurements, limits),
        *grows(measurements, limits),
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
    yield at_most({**row, "candidate": found.estimate, "n": len(flips)}, found)


def _divergence(m: Measurements, limits: Limits) -> Iterator[Check]:
    if limits.max_kl is None:
        return
    row: Fields = {"metric": "kl_mean", "unit": "nats", "limit": limits.max_kl}
    if m.fidelity is None:
        yield Check(**row, **missing(m, "fidelity", "no next-token distributions were compared"))
        return
    found = Interval(m.fidelity.kl_mean, m.fidelity.kl_low, m.fidelity.kl_high)
    yield at_most({**row, "candidate": found.estimate, "n": m.fidelity.positions}, found)


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
