"""Latency: one artifact really timed as three arms, drawn again and again with one of them made slower.

Chance says for each request which of them is the baseline, which its second arm and which the candidate, so
that their true ratios are 1 whatever the machine did to any.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from bench.arms import here
from bench.gate import gate
from bench.latency import Timing, measure
from bench.tasks import Item
from bench.trust.answers import UNLIMITED
from bench.verdict import Measurements, Verdict
from engines.processor import Processor
from engines.session import open_session

Recorded = Sequence[Sequence[list[Timing]]]  # requests, arms, repeats
ARMS = 3


def record(artifact: Path, items: Sequence[Item], *, threads: int | None) -> Recorded:
    """The timings of every item, in turns."""
    processor, arm = Processor.load(artifact), here(open_session(artifact, threads=threads))
    prompts = [processor(item.messages) for item in items]
    timings = measure({str(number): arm for number in range(ARMS)}, prompts, output_tokens=8)
    found: list[list[list[Timing]]] = [[[] for _ in range(ARMS)] for _ in items]
    for timing in timings:
        found[timing.request][int(timing.arm)].append(timing)
    return found


def verdicts(
    recorded: Recorded, *, slower: float, limit: float, draws: int, requests: int, seed: int
) -> Iterator[Verdict]:
    """The gate's on a candidate `slower` times as slow, held to `limit`, each from so many requests."""
    asked = UNLIMITED.model_copy(
        update=dict.fromkeys(("ttft_p50_ratio", "itl_p50_ratio", "e2e_ratio"), limit)
    )
    rng = np.random.default_rng(seed)
    for _ in range(draws):
        drawn: tuple[list[Timing], ...] = ([], [], [])  # baseline, again, candidate
        for number, row in enumerate(rng.integers(len(recorded), size=requests)):
            for timings, arm, factor in zip(drawn, rng.permutation(ARMS), (1.0, 1.0, slower), strict=True):
                timings += [_as(timing, number, factor) for timing in recorded[row][arm]]
        measured = Measurements(
            "baseline",
            "candidate",
            baseline_timings=drawn[0],
            again_timings=drawn[1],
            candidate_timings=drawn[2],
        )
        yield gate(measured, asked).verdict


def _as(timing: Timing, request: int, slower: float) -> Timing:
    return replace(
        timing,
        request=request,
        ttft_ms=timing.ttft_ms * slower,
        itl_ms=timing.itl_ms * slower,
        e2e_latency_ms=timing.e2e_latency_ms * slower,
        output_tokens_per_s=timing.output_tokens_per_s / slower,
    )
