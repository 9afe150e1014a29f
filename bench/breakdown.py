"""Latency phase by phase, for sizes and loads apart: a mean over all hides who waits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from bench.latency import Timing, quantiles
from bench.noise import load_name

# Seeing, reading, writing: time to the first token is vision and prefill, time between tokens is decoding.
# Under load the time to the first token has besides what passed before anything began.
PHASES = ("ttft_ms", "vision_ms", "prefill_ms", "itl_ms", "e2e_latency_ms")


def breakdown(timings: Sequence[Timing]) -> list[dict[str, Any]]:
    """Of one arm: {slice, n, metric: {p50, p95, p99}} for all requests answered alone, by size of their
    images, by length of the prompt, and by how many were answered together; then the same at each load.

    Sizes go from power of two to power of two, so that slices of two runs are the same ones.
    """
    slices = _sizes([timing for timing in timings if timing.batch == 1 and not timing.load])
    slices |= _by([timing for timing in timings if timing.batch > 1], lambda t: f"{t.batch} together")
    for load in sorted({timing.load for timing in timings} - {0.0}):
        sizes = _sizes([timing for timing in timings if timing.load == load])
        name = load_name(load)
        slices |= {name if size == "all" else f"{name}, {size}": rows for size, rows in sizes.items()}
    return [{"slice": name, "n": len(rows), **_phases(rows)} for name, rows in slices.items() if rows]


def figure(values: Mapping[str, float | None] | None) -> str:
    """`12.3 / 14 / -`: p50, p95, p99, and what there is none of."""
    return " / ".join("-" if x is None else f"{x:.3g}" for x in values.values()) if values else "-"


def size_range(what: str, size: int, unit: str) -> str:
    """`prompt of 33–64 tokens`, for 33 as for 64."""
    top = 1 << (size - 1).bit_length()
    return f"{what} {top // 2 + 1:,}–{top:,} {unit}" if top > 1 else f"{what} 1 {unit.removesuffix('s')}"


def _sizes(timings: list[Timing]) -> dict[str, list[Timing]]:
    return {
        "all": timings,
        **_by(timings, lambda t: size_range("image of", t.patches, "patches") if t.patches else "no image"),
        **_by(timings, lambda t: size_range("prompt of", t.prompt_tokens, "tokens")),
    }


def _by(timings: Iterable[Timing], name: Callable[[Timing], str]) -> dict[str, list[Timing]]:
    found: dict[str, list[Timing]] = {}
    for timing in sorted(timings, key=lambda t: (t.batch, t.patches, t.prompt_tokens)):
        found.setdefault(name(timing), []).append(timing)
    return found


def _phases(rows: Sequence[Timing]) -> dict[str, dict[str, float]]:
    found = {phase: [getattr(row, phase) for row in rows] for phase in PHASES}
    return {phase: quantiles(values) for phase, values in found.items() if None not in values}
