"""Latency phase by phase, and for small and large requests apart: a mean over all hides who waits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from bench.latency import Timing, quantiles

# Seeing, reading, writing: time to the first token is vision and prefill, time between tokens is decoding.
PHASES = ("ttft_ms", "vision_ms", "prefill_ms", "itl_ms", "e2e_latency_ms")


def breakdown(timings: Sequence[Timing]) -> list[dict[str, Any]]:
    """Of one arm: {slice, n, metric: {p50, p95, p99}} for all requests answered alone, by size of their
    images, by length of the prompt, and by how many were answered together.

    Sizes go from power of two to power of two, so that slices of two runs are the same ones.
    """
    alone = [timing for timing in timings if timing.batch == 1]
    batches = [timing for timing in timings if timing.batch > 1]
    slices = {
        "all": alone,
        **_by(alone, lambda t: _range("image of", t.patches, "patches") if t.patches else "no image"),
        **_by(alone, lambda t: _range("prompt of", t.prompt_tokens, "tokens")),
        **_by(batches, lambda t: f"{t.batch} together"),
    }
    return [{"slice": name, "n": len(rows), **_phases(rows)} for name, rows in slices.items() if rows]


def figure(values: Mapping[str, float | None] | None) -> str:
    """`12.3 / 14 / -`: p50, p95, p99, and what there is none of."""
    return " / ".join("-" if x is None else f"{x:.3g}" for x in values.values()) if values else "-"


def _by(timings: Iterable[Timing], name: Callable[[Timing], str]) -> dict[str, list[Timing]]:
    found: dict[str, list[Timing]] = {}
    for timing in sorted(timings, key=lambda t: (t.batch, t.patches, t.prompt_tokens)):
        found.setdefault(name(timing), []).append(timing)
    return found


def _range(what: str, size: int, unit: str) -> str:
    """`prompt of 33–64 tokens`, for 33 as for 64."""
    top = 1 << (size - 1).bit_length()
    return f"{what} {top // 2 + 1:,}–{top:,} {unit}" if top > 1 else f"{what} 1 {unit.removesuffix('s')}"


def _phases(rows: Sequence[Timing]) -> dict[str, dict[str, float]]:
    found = {phase: [getattr(row, phase) for row in rows] for phase in PHASES}
    return {phase: quantiles(values) for phase, values in found.items() if None not in values}
