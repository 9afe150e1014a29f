"""Requests that arrive when a schedule says, whoever is still unanswered: an open loop.

Here on an arm that answers one at a time, first come first served. Every request is really answered, in the
order of its arrival and without another arm in between; while nobody waits the clock is put forward to the
next arrival (D. Lindley, Proc. Cambridge Phil. Soc. 48 (1952) 277-289), so a low rate takes no longer than a
high one. What a server makes of many at once `bench open-loop` measures, by the clock on the wall.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
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
    """The same arrivals at every arm in turn, at fractions of what the first answers in a second.

    alone: what each request took by itself, which tells that. Times count from when a request was due.
    While what was timed is not `steady`, all is repeated, up to `most_repeats`.
    """
    capacity = 1e3 / float(table(of_arm(alone, next(iter(arms))), "e2e_latency_ms").mean())
    timings: list[Timing] = []
    done = 0
    with no_garbage_collection():
        while rates:
            total = len(timings) + len(rates) * repeats * len(arms) * len(requests)
            for place, repeat, arm in order(list(arms), len(rates), repeats):
                due = arrivals(rates[place] * capacity, len(requests), seed)
                time.sleep(latency.SETTLE_S)
                for timing in _visit(arm, arms[arm], requests, due, output_tokens):
                    timings.append(replace(timing, repeat=done + repeat, load=rates[place]))
                    if progress:
                        progress(len(timings), total)
            done += repeats
            if steady is None or done + repeats > most_repeats or steady(timings):
                break
    return timings


def _visit(
    name: str, arm: Arm, requests: Sequence[Inputs], due: Array, output_tokens: int
) -> Iterator[Timing]:
    """Every request once, by a clock that begins with the schedule."""
    free = 0.0
    for number, (prompt, arrived) in enumerate(zip(requests, due.tolist(), strict=True)):
        began = max(arrived, free)
        timing = answered(name, number, 0, [prompt], arm([prompt], output_tokens))
        free = began + timing.e2e_latency_ms / 1e3
        yield _waited(timing, 1e3 * (began - arrived))


def _waited(timing: Timing, wait: float) -> Timing:
    """The same answer to one who came `wait` ms before it began."""
    e2e = wait + timing.e2e_latency_ms
    pace = timing.output_tokens_per_s * timing.e2e_latency_ms / e2e
    return replace(
        timing, wait_ms=wait, ttft_ms=wait + timing.ttft_ms, e2e_latency_ms=e2e, output_tokens_per_s=pace
    )
