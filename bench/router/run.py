"""The router beside proxies that people run, on one machine, in one interleaved run."""

from __future__ import annotations

import asyncio
import gc
import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import uvloop

from bench.router.load import hold, repeat
from bench.router.servers import Measured, allow_files, arm, server
from bench.statistics import Interval, median_ratio

CONNECTIONS = 32
ALONE = 10  # in how many of the requests one is sent at a time
EVENT_S = 2.0


@dataclass
class Figures:
    """Of one server, a value for each round; CPU and latency in microseconds."""

    cpu_us: list[float] = field(default_factory=list)
    p50_us: list[float] = field(default_factory=list)
    stream_bytes: float | None = None
    streams_lost: int = 0


def measure(
    names: Sequence[str],
    requests: int,
    streams: int,
    rounds: int,
    folder: Path,
    tell: Callable[[str], None] = lambda line: None,
) -> dict[str, Figures]:
    """All servers run; each in turn is asked `requests` times, the order reversed from round to round.

    Then each holds `streams`, alone. `direct` is the floor. Raises UserError where so many cannot be opened.
    """
    found = {name: Figures() for name in ("direct", *names)}
    folder.mkdir(parents=True, exist_ok=True)
    allow_files(streams)
    with ExitStack() as stack:
        behind = stack.enter_context(arm(folder))
        servers = {name: stack.enter_context(server(name, folder / name, behind.port)) for name in found}
        for it in servers.values():
            uvloop.run(_warm(it))
        for number in range(rounds):
            for name in list(found) if number % 2 == 0 else reversed(found):
                uvloop.run(_ask(servers[name], found[name], requests))
            tell(f"round {number + 1} of {rounds}")
        for name in names if streams else ():
            uvloop.run(_hold(servers[name], found[name], streams))
            tell(f"{name}: {streams} streams held, {found[name].streams_lost} lost")
    return found


async def _warm(it: Measured) -> None:
    await repeat(it.port, CONNECTIONS, 50)  # connections, caches


async def _ask(it: Measured, figures: Figures, requests: int) -> None:
    gc.disable()
    try:
        alone = await repeat(it.port, 1, max(requests // ALONE, 100))
        before = it.cpu_s()
        seconds = await repeat(it.port, CONNECTIONS, max(requests // CONNECTIONS, 1))
    finally:
        gc.enable()
    figures.cpu_us.append((it.cpu_s() - before) / len(seconds) * 1e6)
    figures.p50_us.append(statistics.median(alone) * 1e6)


async def _hold(it: Measured, figures: Figures, streams: int) -> None:
    empty = it.memory()

    async def held() -> None:
        await asyncio.sleep(EVENT_S)
        figures.stream_bytes = (it.memory() - empty) / streams

    ended = await hold(it.port, streams, 6, max(EVENT_S, streams / 500), held)
    figures.streams_lost = streams - ended.whole


def table(found: dict[str, Figures], beside: str = "nginx") -> list[dict[str, Any]]:
    """A row for each server; ratios to `beside` are paired by round, with a 95 % interval over rounds."""
    floor = np.array(found["direct"].p50_us)
    added = {name: np.array(figures.p50_us) - floor for name, figures in found.items()}
    return [
        {
            "name": name,
            "cpu_us": round(statistics.median(figures.cpu_us), 1),
            "cpu_ratio": _ratio(figures.cpu_us, found[beside].cpu_us) if beside in found else None,
            "added_p50_us": round(float(np.median(added[name])), 1),
            "p50_ratio": _ratio(added[name], added[beside]) if beside in found else None,
            "stream_bytes": None if figures.stream_bytes is None else round(figures.stream_bytes),
            "streams_lost": figures.streams_lost,
        }
        for name, figures in found.items()
        if name != "direct"
    ]


def _ratio(values: Sequence[float] | np.ndarray, base: Sequence[float] | np.ndarray) -> dict[str, float]:
    """Median over rounds of the ratio within a round."""
    candidate, baseline = (np.reshape(np.asarray(x, dtype=float), (-1, 1)) for x in (values, base))
    if len(candidate) < 2 or candidate.tolist() == baseline.tolist():
        ratio = float(np.median(candidate / baseline))
        found = Interval(ratio, ratio, ratio)
    else:
        found = median_ratio(baseline, candidate, confidence=0.95)
    return {name: round(value, 2) for name, value in asdict(found).items()}
