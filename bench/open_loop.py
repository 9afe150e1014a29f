"""Load that does not wait: requests arrive when a schedule says, as users do, whoever is still unanswered.

A client that asks again only once it is answered goes easy on a server just while that is slow, and so leaves
out the very waits it is there to find (coordinated omission: G. Tene, "How NOT to Measure Latency", 2013).
Here every time counts from when a request was due, and one that was never answered took for ever.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from http.client import HTTPException
from itertools import count
from typing import Any

import numpy as np

from bench.client import (
    PICTURE,
    Load,
    TurnedAwayError,
    chunks,
    first_model,
    has_words,
    question,
    tokens_of,
    words,
)
from bench.latency import AGAIN, QUANTILES, order
from bench.statistics import Array, Interval, median_ratio

Rounds = Sequence[Sequence["Asked"]]  # each of the same requests
FIGURES = ("ttft_ms", "itl_ms", "e2e_latency_ms")


@dataclass(frozen=True)
class Asked:
    """A request and its answer. Seconds on one clock: due by the schedule, sent, first word, last token."""

    due: float
    sent: float
    picture: bool
    first: float = 0.0
    last: float = 0.0
    tokens: int = 0
    problem: str = ""  # why it was not answered

    @property
    def ttft_ms(self) -> float:
        return float("inf") if self.problem else 1e3 * (self.first - self.due)

    @property
    def e2e_latency_ms(self) -> float:
        return float("inf") if self.problem else 1e3 * (self.last - self.due)

    @property
    def itl_ms(self) -> float:
        if self.problem:
            return float("inf")
        return 1e3 * (self.last - self.first) / max(1, self.tokens - 1)


@dataclass(frozen=True)
class Plan:
    """What every server is asked. rates: fractions of what the first server answers in a second, one request
    after the other."""

    rates: Sequence[float] = (0.25, 0.5, 0.75)
    requests: int = 40
    rounds: int = 2
    seed: int = 0


@dataclass
class Outcome:
    """capacity: requests a second of the first server, one after the other; 0 where it left one unanswered,
    as then nothing more is asked. asked: by rate (0 is one after the other) and server.
    """

    capacity: float = 0.0
    asked: dict[tuple[float, str], list[list[Asked]]] = field(default_factory=dict)


def arrivals(rate: float, requests: int, seed: int) -> Array:
    """Seconds at which the requests are due: a Poisson process of `rate` a second. Half the rate is the same
    process at half the speed.
    """
    return np.cumsum(np.random.default_rng(seed).exponential(1.0, requests)) / rate


def compare(
    urls: Sequence[str], load: Load, plan: Plan, tell: Callable[[str], None] = lambda line: None
) -> Outcome:
    """The first server twice, then the others: one after the other, then at every rate, by turns.

    All get requests of the same sizes at the same times, in every round. No two get the same text or picture,
    as a server may remember those. Raises UserError when one is not there.
    """
    names = (urls[0], urls[0] + AGAIN, *urls[1:])
    servers = {name: replace(load, url=name.removesuffix(AGAIN)) for name in names}
    models = {name: first_model(server) for name, server in servers.items()}
    found, visit = Outcome(), count(1)

    def bodies(name: str) -> list[bytes]:
        number = next(visit)
        return [_body(servers[name], models[name], [plan.seed, i], number) for i in range(plan.requests)]

    for _, number, name in order(names, 1, plan.rounds):
        tell(f"round {number + 1} of {plan.rounds}, one by one: {name}")
        found.asked.setdefault((0.0, name), []).append(one_by_one(servers[name], bodies(name)))
    alone = [asked.e2e_latency_ms for answers in found.asked[0.0, urls[0]] for asked in answers]
    if not np.isfinite(alone).all():
        return found
    found.capacity = 1e3 / float(np.mean(alone))
    for place, number, name in order(names, len(plan.rates), plan.rounds):
        rate = plan.rates[place]
        tell(f"round {number + 1} of {plan.rounds}, {rate:g} of the first's capacity: {name}")
        due = arrivals(rate * found.capacity, plan.requests, plan.seed)
        found.asked.setdefault((rate, name), []).append(drive(servers[name], bodies(name), due))
    return found


def drive(load: Load, bodies: Sequence[bytes], due: Array) -> list[Asked]:
    """Sends every request when it is due, and waits for nobody before the last one is sent."""
    answers: list[Asked | None] = [None] * len(bodies)
    start = time.perf_counter()

    def send(number: int) -> None:
        answers[number] = ask(load, bodies[number], start + float(due[number]))

    threads = [threading.Thread(target=send, args=(number,)) for number in range(len(bodies))]
    for at, thread in zip(due, threads, strict=True):
        time.sleep(max(0.0, start + at - time.perf_counter()))
        thread.start()
    for thread in threads:
        thread.join()
    return [answer for answer in answers if answer]


def one_by_one(load: Load, bodies: Sequence[bytes]) -> list[Asked]:
    """Sends every request once the one before is answered."""
    return [ask(load, body, time.perf_counter()) for body in bodies]


def ask(load: Load, body: bytes, due: float) -> Asked:
    """One request, sent now."""
    asked = Asked(due, time.perf_counter(), PICTURE in body)
    first, last, tokens = 0.0, 0.0, 0
    try:
        for chunk in chunks(load, body):
            tokens += tokens_of(chunk)
            last = time.perf_counter()
            if has_words(chunk):
                first = first or last
    except (TurnedAwayError, OSError, HTTPException, ValueError) as error:
        return replace(asked, problem=str(error) or type(error).__name__)
    # Tokens that are no text, such as the end of an answer, are not seen one by one.
    problem = "" if tokens else "an answer without a token"
    return replace(asked, first=first or last, last=last, tokens=tokens, problem=problem)


def figures(asked: Sequence[Asked]) -> dict[str, Any]:
    """p50, p95 and p99 of every time, None for one that was not reached; late_ms: how long after it was due a
    request was sent, which is the client's fault and counts as the server's."""
    late = np.quantile([1e3 * (one.sent - one.due) for one in asked], 0.99)
    problems: dict[str, int] = {}
    for one in asked:
        if one.problem:
            problems[one.problem] = problems.get(one.problem, 0) + 1
    quantiles = {name: _quantiles([getattr(one, name) for one in asked]) for name in FIGURES}
    return {"requests": len(asked), "problems": problems, "late_p99_ms": float(late), **quantiles}


def ratio(first: Rounds, other: Rounds, metric: str) -> Interval | None:
    """Median over requests of other / first; None where either left any unanswered, or there are too few."""
    before, after = (
        np.array([[getattr(one, metric) for one in part] for part in rounds]).T for rounds in (first, other)
    )
    if len(before) < 2 or not np.isfinite([before, after]).all():
        return None
    return median_ratio(before, after)


def _quantiles(values: Sequence[float]) -> dict[str, float | None]:
    """Of times some of which are infinite, so nothing between two of them is made up."""
    found = np.quantile(values, QUANTILES, method="inverted_cdf").tolist()
    names = [f"p{100 * q:.0f}" for q in QUANTILES]
    return {name: value if np.isfinite(value) else None for name, value in zip(names, found, strict=True)}


def _body(load: Load, model: str, seed: Sequence[int], visit: int) -> bytes:
    """Its size is drawn from the seed; that it is new, from the visit."""
    random = np.random.default_rng(seed)
    text = f"{visit:04} {words(random)}"
    picture = int(random.integers(1 << 20)) * 10_000 + visit if random.random() < load.images else None
    return question(load, model, f"visit {visit}", text, picture)
