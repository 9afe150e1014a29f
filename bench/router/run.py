"""The router beside proxies that people run, on one machine, in one interleaved run."""

from __future__ import annotations

import asyncio
import gc
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvloop

from bench.router.load import hold, repeat
from bench.router.servers import Measured, arm, server

CONNECTIONS = 32
EVENT_S = 2.0


@dataclass
class Figures:
    """Of one server, a value for each round; CPU and latency in microseconds."""

    cpu_us: list[float] = field(default_factory=list)
    p50_us: list[float] = field(default_factory=list)
    stream_bytes: list[float] = field(default_factory=list)
    streams_lost: int = 0


def measure(
    names: Sequence[str], requests: int, streams: int, rounds: int, folder: Path
) -> dict[str, Figures]:
    """Every server in turn, the order reversed from round to round; `direct` is the floor."""
    found = {name: Figures() for name in ("direct", *names)}
    folder.mkdir(parents=True, exist_ok=True)
    with arm(folder) as behind:
        for number in range(rounds):
            order = list(found) if number % 2 == 0 else list(reversed(found))
            for name in order:
                with server(name, folder / name, behind.port) as it:
                    uvloop.run(_visit(it, found[name], requests, streams if name != "direct" else 0))
    return found


async def _visit(it: Measured, figures: Figures, requests: int, streams: int) -> None:
    await repeat(it.port, CONNECTIONS, 20)  # connections, caches
    gc.disable()
    figures.p50_us.append(statistics.median(await repeat(it.port, 1, max(requests // 10, 100))) * 1e6)
    before = it.cpu_s()
    seconds = await repeat(it.port, CONNECTIONS, max(requests // CONNECTIONS, 1))
    figures.cpu_us.append((it.cpu_s() - before) / len(seconds) * 1e6)
    gc.enable()
    if not streams:
        return
    empty = it.memory()

    async def held() -> None:
        await asyncio.sleep(EVENT_S)
        figures.stream_bytes.append((it.memory() - empty) / streams)

    ended = await hold(it.port, streams, 6, max(EVENT_S, streams / 500), held)
    figures.streams_lost += streams - ended.whole


def table(found: dict[str, Figures], beside: str = "nginx") -> list[dict[str, Any]]:
    """A row for each server; ratios are to `beside`, of medians over rounds."""
    floor = statistics.median(found["direct"].p50_us)
    rows: list[dict[str, Any]] = []
    for name, figures in found.items():
        if name == "direct":
            continue
        rows.append(
            {
                "name": name,
                "cpu_us": round(statistics.median(figures.cpu_us), 1),
                "added_p50_us": round(statistics.median(figures.p50_us) - floor, 1),
                "stream_bytes": round(statistics.median(figures.stream_bytes))
                if figures.stream_bytes
                else None,
                "streams_lost": figures.streams_lost,
            }
        )
    base = next((row for row in rows if row["name"] == beside), None)
    for row in rows:
        for ratio, what in (("cpu_ratio", "cpu_us"), ("p50_ratio", "added_p50_us")):
            row[ratio] = round(row[what] / base[what], 2) if base and base[what] else None
    return rows
