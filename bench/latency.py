"""Latency of several variants on the same requests, interleaved so that drift of the machine cancels.

The first arm is the baseline, and it is there twice: what it differs from itself is the run's noise, measured
on the same requests at the same time as everything else (an A/A test). Every arm generates the same number of
tokens for each request, whatever it says: one that stops early must not look fast. A request is timed from
its preprocessed inputs, as preprocessing is the same for all arms. An arm may be a process of its own, timed
by its own clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bench.arms import Arm, Stamps, no_garbage_collection
from engines.device import Usage, Watch
from engines.sensors import Meter, temperatures

if TYPE_CHECKING:
    from engines.processor import Inputs

AGAIN = ", again"  # ends the name of the baseline's second arm
SETTLE_S = 0.01  # thread pools of the arm before spin for some ms, on the cores the next one needs
METRICS = ("ttft_ms", "itl_ms", "e2e_latency_ms", "output_tokens_per_s")
QUANTILES = (0.5, 0.95, 0.99)


@dataclass(frozen=True)
class Timing:
    """A request, or a batch of them together, answered once by one arm. None is what was not measured.

    prompt_tokens, patches (of its images and videos) and output_tokens_per_s (counted from the arrival) are
    of the whole batch, output_tokens of each sequence. energy_j and temperature_c: of the processors, or of
    the GPU where `device` has what it showed meanwhile. load: where requests arrived by a schedule, at which
    fraction of what the baseline answers in a second; times count from the arrival, wait_ms of them passed
    before the arm began.
    """

    arm: str
    request: int
    repeat: int
    prompt_tokens: int
    output_tokens: int
    ttft_ms: float
    itl_ms: float
    e2e_latency_ms: float
    output_tokens_per_s: float
    device: Usage | None = None
    batch: int = 1
    patches: int = 0
    vision_ms: float | None = None
    energy_j: float | None = None
    temperature_c: float | None = None
    load: float = 0.0
    wait_ms: float = 0.0

    @property
    def prefill_ms(self) -> float | None:
        """The time to the first token without waiting and without what images and videos took."""
        return None if self.vision_ms is None else self.ttft_ms - self.wait_ms - self.vision_ms


def measure(
    arms: Mapping[str, Arm],
    requests: Sequence[Inputs],
    *,
    output_tokens: int = 16,
    repeats: int = 2,
    warmup: int = 2,
    batches: Sequence[int] = (1,),
    watch: bool = False,
    most_repeats: int = 0,
    steady: Callable[[Sequence[Timing]], bool] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Timing]:
    """Times every arm on every request `repeats` times, after answering the first `warmup` ones untimed.

    batches: how many requests are answered together, each number in turn. watch: the arms run on this
    machine's GPU, which is asked how it is meanwhile. While what was timed is not `steady`, requests are
    answered one at a time again, up to `most_repeats`.
    """
    if output_tokens < 2:
        raise ValueError(f"output_tokens is {output_tokens}; the time between tokens needs at least 2")
    for prompt in requests[:warmup]:
        for answer in arms.values():
            answer([prompt], output_tokens)
    groups = [group for size in batches for group in _together(requests, size)]
    timings: list[Timing] = []
    done = 0
    with no_garbage_collection():
        while True:
            total = len(timings) + len(groups) * repeats * len(arms)
            for place, repeat, arm in order(list(arms), len(groups), repeats):
                number, prompts = groups[place]
                time.sleep(SETTLE_S)
                with Watch() if watch else nullcontext() as gpu:
                    meter = Meter()
                    stamps = arms[arm](prompts, output_tokens)
                    spent = meter.joules(), max(temperatures().values(), default=None)
                usage = gpu.usage() if gpu else None
                timings.append(answered(arm, number, done + repeat, prompts, stamps, usage, *spent))
                if progress:
                    progress(len(timings), total)
            done += repeats
            groups = [group for group in groups if len(group[1]) == 1]
            if steady is None or done + repeats > most_repeats or steady(timings):
                return timings


def order(arms: Sequence[str], requests: int, repeats: int) -> Iterator[tuple[int, int, str]]:
    """(request, repeat, arm) as measured: A B C, C B A for one request, B C A, A C B for the next.

    Mirroring cancels linear drift within a request; rotating gives every arm every place in the row.
    """
    for request in range(requests):
        turn = request % len(arms)
        row = [*arms[turn:], *arms[:turn]]
        for repeat in range(repeats):
            yield from ((request, repeat, arm) for arm in (row if repeat % 2 == 0 else reversed(row)))


def table(timings: Sequence[Timing], metric: str) -> NDArray[np.float64]:
    """One metric of one arm's timings as [requests, repeats]; ValueError if one is missing or repeated."""
    found = {(t.request, t.repeat): float(getattr(t, metric)) for t in timings}
    requests, repeats = (1 + max((key[axis] for key in found), default=-1) for axis in (0, 1))
    if not 0 < requests * repeats == len(found) == len(timings):
        raise ValueError(
            f"{len(timings)} timings of {requests} requests x {repeats} repeats; expected one of each"
        )
    return np.array([[found[i, j] for j in range(repeats)] for i in range(requests)])


def summarize(timings: Sequence[Timing]) -> dict[str, dict[str, dict[str, float]]]:
    """arm -> metric -> {p50, p95, p99}, of requests answered one at a time."""
    return {
        arm: {metric: quantiles(table(of_arm(timings, arm), metric)) for metric in METRICS}
        for arm in dict.fromkeys(t.arm for t in timings)
    }


def of_arm(timings: Sequence[Timing], arm: str) -> list[Timing]:
    """What one arm took for requests answered one at a time, each asked for once the last was answered."""
    return [timing for timing in timings if timing.arm == arm and timing.batch == 1 and not timing.load]


def single(timings: Sequence[Timing], arm: str) -> list[Timing]:
    """The same and what it took for requests that arrived by a schedule: all that the gate judges."""
    return [timing for timing in timings if timing.arm == arm and timing.batch == 1]


def quantiles(values: Any) -> dict[str, float]:
    """p50, p95 and p99; the last of fewer than a hundred is near the highest."""
    return {
        f"p{100 * q:.0f}": float(x) for q, x in zip(QUANTILES, np.quantile(values, QUANTILES), strict=True)
    }


def _together(requests: Sequence[Inputs], size: int) -> list[tuple[int, Sequence[Inputs]]]:
    """Requests in batches of one size, numbered; those left over are left out."""
    return [(at // size, requests[at : at + size]) for at in range(0, len(requests) - size + 1, size)]


def answered(
    arm: str,
    number: int,
    repeat: int,
    prompts: Sequence[Inputs],
    stamps: Stamps,
    usage: Usage | None = None,
    joules: float | None = None,
    celsius: float | None = None,
) -> Timing:
    """The timing of prompts that were answered together."""
    ttft, e2e = ((stamp - stamps.began) * 1e3 for stamp in (stamps.tokens[0], stamps.tokens[-1]))
    count = len(stamps.tokens)
    return Timing(
        arm=arm,
        request=number,
        repeat=repeat,
        prompt_tokens=sum(len(prompt.input_ids) for prompt in prompts),
        output_tokens=count,
        ttft_ms=ttft,
        itl_ms=(e2e - ttft) / (count - 1),
        e2e_latency_ms=e2e,
        output_tokens_per_s=len(prompts) * count / e2e * 1e3,
        device=usage,
        batch=len(prompts),
        patches=sum(prod(media.grid) for prompt in prompts for media in prompt.media),
        vision_ms=1e3 * stamps.vision_s,
        energy_j=usage.power_w * e2e / 1e3 if usage else joules,
        temperature_c=usage.temperature_c if usage else celsius,
    )
