"""Load that does not wait: requests arrive when a schedule says, as users do, whoever is still unanswered.

A client that asks again only once it is answered goes easy on a server just while that is slow, and so leaves
out the very waits it is there to find (coordinated omission: G. Tene, "How NOT to Measure Latency", 2013).
Here every time counts from when a request was due, and one that was never answered took for ever.
A verdict is given as of a variant's latency (bench.noise): none where the first is not like itself.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from http.client import HTTPException
from itertools import count
from typing import Any

import numpy as np

from bench.arrivals import arrivals
from bench.breakdown import size_range
from bench.client import Load, TurnedAwayError, chunks, first_model, has_words, question, tokens_of, words
from bench.latency import AGAIN, QUANTILES, order
from bench.noise import judged, load_name
from bench.statistics import Array, Interval, median_ratio
from bench.verdict import Check, Fields, Verdict

Rounds = Sequence[Sequence["Asked"]]  # each of the same requests
FIGURES = ("ttft_ms", "itl_ms", "e2e_latency_ms")
CONFIDENCE = 0.95  # of each bound, one-sided, as of the gate


@dataclass(frozen=True)
class Request:
    """picture: pixels of its side, 0 where there is none; words: of the question."""

    body: bytes
    picture: int = 0
    words: int = 1

    @property
    def sizes(self) -> tuple[str, str]:
        """The slices it belongs to."""
        picture = f"picture of {self.picture} pixels" if self.picture else "no picture"
        return picture, size_range("question of", self.words, "words")


@dataclass(frozen=True)
class Asked:
    """A request and its answer. Seconds on one clock: due by the schedule, sent, first word, last token."""

    due: float
    sent: float
    request: Request
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
    after the other. image_sizes: pixels of a side, of which a picture has one."""

    rates: Sequence[float] = (0.25, 0.5, 0.75)
    image_sizes: Sequence[int] = (224, 448)
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

    def drawn(name: str) -> list[Request]:
        number = next(visit)
        return [_request(servers[name], models[name], plan, i, number) for i in range(plan.requests)]

    for _, number, name in order(names, 1, plan.rounds):
        tell(f"round {number + 1} of {plan.rounds}, one by one: {name}")
        found.asked.setdefault((0.0, name), []).append(one_by_one(servers[name], drawn(name)))
    alone = [asked.e2e_latency_ms for answers in found.asked[0.0, urls[0]] for asked in answers]
    if not np.isfinite(alone).all():
        return found
    found.capacity = 1e3 / float(np.mean(alone))
    for place, number, name in order(names, len(plan.rates), plan.rounds):
        rate = plan.rates[place]
        tell(f"round {number + 1} of {plan.rounds}, {rate:g} of the first's capacity: {name}")
        due = arrivals(rate * found.capacity, plan.requests, plan.seed)
        found.asked.setdefault((rate, name), []).append(drive(servers[name], drawn(name), due))
    return found


def drive(load: Load, requests: Sequence[Request], due: Array) -> list[Asked]:
    """Sends every request when it is due, and waits for nobody before the last one is sent."""
    answers: list[Asked | None] = [None] * len(requests)
    start = time.perf_counter()

    def send(number: int) -> None:
        answers[number] = ask(load, requests[number], start + float(due[number]))

    threads = [threading.Thread(target=send, args=(number,)) for number in range(len(requests))]
    for at, thread in zip(due, threads, strict=True):
        time.sleep(max(0.0, start + at - time.perf_counter()))
        thread.start()
    for thread in threads:
        thread.join()
    return [answer for answer in answers if answer]


def one_by_one(load: Load, requests: Sequence[Request]) -> list[Asked]:
    """Sends every request once the one before is answered."""
    return [ask(load, request, time.perf_counter()) for request in requests]


def ask(load: Load, request: Request, due: float) -> Asked:
    """One request, sent now."""
    asked = Asked(due, time.perf_counter(), request)
    first, last, tokens = 0.0, 0.0, 0
    try:
        for chunk in chunks(load, request.body):
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


def by_size(asked: Sequence[Asked]) -> dict[str, list[Asked]]:
    """Requests by their pictures and by the length of their questions; each is in two slices."""
    found: dict[str, list[Asked]] = {}
    for place in (0, 1):
        for one in sorted(asked, key=lambda one: (one.request.picture, one.request.words)):
            found.setdefault(one.request.sizes[place], []).append(one)
    return found


def ratio(first: Rounds, other: Rounds, metric: str) -> Interval | None:
    """Median over requests of other / first; None where either left any unanswered, or there are too few."""
    before, after = _times(first, metric), _times(other, metric)
    if len(before) < 2 or not np.isfinite([before, after]).all():
        return None
    return median_ratio(before, after)


def checks(first: Rounds, again: Rounds, other: Rounds, rate: float, limit: float) -> Iterator[Check]:
    """Whether another server makes its users wait for at most `limit` times as long as the first: the median
    time to the first word, and the median over requests of the whole answer's.
    """
    for metric, q in (("ttft_ms", 0.5), ("e2e_latency_ms", None)):
        row: Fields = {"metric": f"{metric} p50" if q else metric, "unit": "ms", "limit": limit}
        row |= {"relative": True, "slice": load_name(rate) if rate else "all"}
        before, same, after = (_times(rounds, metric) for rounds in (first, again, other))
        if not np.isfinite([before, same]).all():
            reason = "the first server itself left requests unanswered"
            yield Check(**row, verdict=Verdict.INCONCLUSIVE, reason=reason)
        elif unanswered := int(np.isinf(after).sum()):
            reason = f"{unanswered} of {after.size} requests were not answered"
            yield Check(**row, verdict=Verdict.FAIL, reason=reason)
        else:
            yield judged(row, before, same, after, q, CONFIDENCE)


def _times(rounds: Rounds, metric: str) -> Array:
    """[requests, rounds]"""
    return np.array([[getattr(one, metric) for one in part] for part in rounds]).T


def _quantiles(values: Sequence[float]) -> dict[str, float | None]:
    """Of times some of which are infinite, so nothing between two of them is made up."""
    found = np.quantile(values, QUANTILES, method="inverted_cdf").tolist()
    names = [f"p{100 * q:.0f}" for q in QUANTILES]
    return {name: value if np.isfinite(value) else None for name, value in zip(names, found, strict=True)}


def _request(load: Load, model: str, plan: Plan, number: int, visit: int) -> Request:
    """Its sizes are drawn from the seed; that it is new, from the visit."""
    random = np.random.default_rng([plan.seed, number])
    text = f"{visit:04} {words(random)}"
    shown = random.random() < load.images
    picture = int(random.integers(1 << 20)) * 10_000 + visit if shown else None
    size = int(random.choice(plan.image_sizes)) if shown else 0
    body = question(replace(load, image_size=size), model, f"visit {visit}", text, picture)
    return Request(body, size, len(text.split()))
