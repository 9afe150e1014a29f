"""Load on a server of OpenAI's API: clients who each ask again as soon as they are answered, streaming.

What a client sees is what counts: times are taken where the events arrive, tokens from the server's usage.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect, bisect_left
from dataclasses import dataclass, field
from http.client import HTTPException

import numpy as np

from bench.client import (
    PICTURE,
    PICTURES,
    Load,
    TurnedAwayError,
    chunks,
    first_model,
    has_words,
    memory,
    question,
    tokens_of,
    words,
)


@dataclass
class Tally:
    """What some clients saw. gaps: from event to event of a stream, in s; pictures: from when to when
    one of them waited for the first word about a picture; errors: how often each."""

    ttft_ms: list[float] = field(default_factory=list)
    gaps: list[tuple[float, float]] = field(default_factory=list)
    pictures: list[tuple[float, float]] = field(default_factory=list)
    tokens: int = 0
    requests: int = 0
    turned_away: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    memory: list[int] = field(default_factory=list)

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0

    def add(self, other: Tally) -> None:
        self.ttft_ms += other.ttft_ms
        self.gaps += other.gaps
        self.pictures += other.pictures
        self.tokens += other.tokens
        self.requests += other.requests
        self.turned_away += other.turned_away
        for name, count in other.errors.items():
            self.errors[name] = self.errors.get(name, 0) + count

    def gaps_beside_pictures(self) -> list[tuple[float, float]]:
        """The gaps of streams that were running while somebody else's picture was waited for."""
        starts, ends = (
            (sorted(times) for times in zip(*self.pictures, strict=True)) if self.pictures else ([], [])
        )
        # Where as many had begun before the gap's end as had ended by its start, none was on its way.
        return [gap for gap in self.gaps if bisect_left(starts, gap[1]) > bisect(ends, gap[0])]

    def summary(self) -> dict[str, object]:
        """For a table or JSON."""
        quarter = self.memory[len(self.memory) // 4] if self.memory else None
        return {
            "requests": self.requests,
            "turned_away": self.turned_away,
            "errors": self.errors,
            "output_tokens_per_s": self.tokens_per_s,
            "ttft_ms": _percentiles(self.ttft_ms),
            "gap_ms": _percentiles([1000 * (end - start) for start, end in self.gaps]),
            "gap_beside_pictures_ms": _percentiles(
                [1000 * (end - start) for start, end in self.gaps_beside_pictures()]
            ),
            "memory_bytes": {"first_quarter": quarter, "last": self.memory[-1] if self.memory else None},
        }


def run(load: Load, clients: int) -> Tally:
    """`clients` at once, for so many seconds; each asks once or more, and what it has begun is finished."""
    model = first_model(load)
    tallies = [Tally() for _ in range(clients)]
    start = time.perf_counter()
    threads = [
        threading.Thread(target=_client, args=(load, model, number, start + load.seconds, tally))
        for number, tally in enumerate(tallies)
    ]
    for thread in threads:
        thread.start()
    whole = Tally()
    while any(thread.is_alive() for thread in threads):
        whole.memory += memory(load)
        for thread in threads:
            thread.join(timeout=max(0.1, load.seconds / 20) / clients)
    whole.seconds = time.perf_counter() - start
    whole.memory += memory(load)
    for tally in tallies:
        whole.add(tally)
    return whole


def _client(load: Load, model: str, number: int, end: float, tally: Tally) -> None:
    random = np.random.default_rng([load.seed, number])
    while tally.requests == 0 or time.perf_counter() < end:
        tally.requests += 1
        try:
            _ask(load, _body(load, model, number, random), tally)
        except TurnedAwayError as full:
            tally.turned_away += 1
            time.sleep(full.seconds)
        except (OSError, HTTPException, ValueError) as error:
            reason = str(error) if isinstance(error, ValueError) else type(error).__name__
            tally.errors[reason] = tally.errors.get(reason, 0) + 1


def _ask(load: Load, body: bytes, tally: Tally) -> None:
    """One streamed answer."""
    start = last = time.perf_counter()
    for chunk in chunks(load, body):
        tally.tokens += tokens_of(chunk)
        if has_words(chunk):
            now = time.perf_counter()
            if last > start:
                tally.gaps.append((last, now))
            else:
                tally.ttft_ms.append(1000 * (now - start))
                tally.pictures += [(start, now)] if PICTURE in body else []
            last = now


def _body(load: Load, model: str, number: int, random: np.random.Generator) -> bytes:
    text = words(random)
    picture = int(random.integers(PICTURES)) if random.random() < load.images else None
    return question(load, model, f"client {number}", text, picture)


def _percentiles(values: list[float]) -> dict[str, float]:
    if not values:
        return {}
    p50, p95, p99 = np.percentile(values, (50, 95, 99))
    return {"p50": float(p50), "p95": float(p95), "p99": float(p99), "max": max(values)}
