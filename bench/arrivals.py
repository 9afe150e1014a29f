"""Requests that arrive when a schedule says, whoever is still unanswered: an open loop.

Here on an arm that answers one at a time, first come first served. Every request is really answered, in the
order of its arrival. The arms take turns at each, so that what disturbs the machine meets all alike, and an
arm's clock runs only while it answers: then it goes on, or forward to the next arrival (D. Lindley, Proc.
Cambridge Phil. Soc. 48 (1952) 277-289), so a low rate takes no longer than a high one. What a server makes of
many at once `bench open-loop` measures, by the clock on the wall.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from bench import latency
from bench.arms import Arm, no_garbage_collection
from bench.latency import Timing, answered, of_arm, order, table
from bench.statistics import Array

if TYPE_CHECKING:
    from engines.processor import Inputs


def arrivals(rate: float, requests: int, seed: int) -> Array:
    """Seconds at which the requests are due: a Poisson process of `rate` a second. Half the rate is the same
    process at half the speed.
    """
    return np.cumsum(np.random.default_rng(seed).exponential(1.0, requests)) / rate


def under_load(
    arms: Mapping[str, Arm],
    requests: Sequence[Inputs],
    alone: Sequence[Timing],
    rates: Sequence[float],
    *,
    output_tokens: int = 16,
    repeats: int = 2,
    most_repeats: int = 0,
    steady: Callable[[Sequence[Timing]], bool] | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> list[Timing]:
    """The same arrivals at every arm, at fractions of what the first answers in a second.

    alone: what each request took by itself, which tells that. Times count from when a request was due.
    While what was timed is not `steady`, all is repeated, up to `most_repeats`.
    """
    capacity = 1e3 / float(table(of_arm(alone, next(iter(arms))), "e2e_latency_ms").mean())
    timings: list[Timing] = []
    done = 0
    with no_garbage_collection():
        while rates:
            total = len(timings) + len(rates) * repeats * len(arms) * len(requests)
            for rate in rates:
                due = arrivals(rate * capacity, len(requests), seed).tolist()
                free: Counter[tuple[str, int]] = Counter()  # seconds at which an arm has answered all before
                for number, repeat, arm in order(list(arms), len(requests), repeats):
                    time.sleep(latency.SETTLE_S)
                    prompts = [requests[number]]
                    stamps = arms[arm](prompts, output_tokens)
                    timing = answered(arm, number, done + repeat, prompts, stamps)
                    began = max(due[number], free[arm, repeat])
                    free[arm, repeat] = began + timing.e2e_latency_ms / 1e3
                    timings.append(_waited(timing, rate, 1e3 * (began - due[number])))
                    if progress:
                        progress(len(timings), total)
            done += repeats
            if steady is None or done + repeats > most_repeats or steady(timings):
                break
    return timings


def _waited(timing: Timing, load: float, wait: float) -> Timing:
    """The same answer to one who came `wait` ms before it began."""
    e2e = wait + timing.e2e_latency_ms
    pace = timing.output_tokens_per_s * timing.e2e_latency_ms / e2e
    return replace(
        timing,
        load=load,
        wait_ms=wait,
        ttft_ms=wait + timing.ttft_ms,
        e2e_latency_ms=e2e,
        output_tokens_per_s=pace,
    )
