"""What an answer takes besides time: power, energy, heat, money. What cannot be known is None, never zero."""

from __future__ import annotations

from collections.abc import Sequence

from bench.latency import Timing
from bench.verdict import Row

UNREADABLE = "not readable on this machine"
UNPRICED = "no price in the recipe (price.per_hour)"
UNITS = {"power": "W", "temperature": "°C", "energy per 1,000 tokens": "J", "cost per million tokens": ""}


def spent(timings: Sequence[Timing], price: float | None) -> dict[str, float | None]:
    """Of requests answered one at a time: mean power, highest temperature, energy and money for the tokens
    that came out. price: of an hour of the machine. Raises ValueError without timings.
    """
    if not timings:
        raise ValueError("found no timings, expected one or more")
    seconds = sum(timing.e2e_latency_ms for timing in timings) / 1e3
    tokens = sum(timing.batch * timing.output_tokens for timing in timings)
    energies = [timing.energy_j for timing in timings]
    joules = None if None in energies else sum(energy or 0.0 for energy in energies)
    heat = [timing.temperature_c for timing in timings if timing.temperature_c is not None]
    figures = (
        None if joules is None else joules / seconds,
        max(heat, default=None),
        None if joules is None else 1e3 * joules / tokens,
        None if price is None else price / 3600 * seconds / tokens * 1e6,
    )
    return dict(zip(UNITS, figures, strict=True))


def observed(
    baseline: Sequence[Timing], candidate: Sequence[Timing], price: float | None, currency: str
) -> list[Row]:
    """The same as rows of a gate, which hold it to no limit; none of a candidate that was not timed."""
    if not candidate or not baseline:
        return []
    before, after = spent(baseline, price), spent(candidate, price)
    rows = []
    for metric, unit in UNITS.items():
        first, second = before[metric], after[metric]
        reason = "" if second is not None else UNREADABLE if unit else UNPRICED
        delta = second - first if first is not None and second is not None else None
        rows.append(
            Row(
                metric=metric,
                unit=unit or currency,
                baseline=first,
                candidate=second,
                delta=delta,
                n=len(candidate),
                reason=reason,
            )
        )
    return rows


def sentence(rows: Sequence[Row]) -> str:
    """`power 45.2 W; temperature 61 °C`, or what there is none of and why; empty without rows."""
    known = [f"{row.metric} {_figure(row.candidate)} {row.unit}" for row in rows if row.candidate is not None]
    why: dict[str, list[str]] = {}
    for row in rows:
        if row.candidate is None:
            why.setdefault(row.reason, []).append(row.metric)
    return "; ".join([*known, *(f"{', '.join(metrics)}: {reason}" for reason, metrics in why.items())])


def _figure(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"
