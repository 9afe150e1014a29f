"""Load on a server of OpenAI's API: clients who each ask again as soon as they are answered, streaming.

What a client sees is what counts: times are taken where the events arrive, tokens from the server's usage.
"""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from bisect import bisect, bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from engines.errors import UserError

PICTURES = 32  # different ones: every other is seen again now and then
WORDS = [
    "what",
    "how",
    "many",
    "colour",
    "shape",
    "left",
    "right",
    "the",
    "is",
    "under",
    "red",
    "blue",
    "read",
]
STALLED = 60.0  # seconds without an event
PICTURE = b'"image_url"'  # what the bodies of requests about a picture hold, and no others


@dataclass(frozen=True)
class Load:
    """images: share of the requests that show a picture of `image_size` pixels squared."""

    url: str
    seconds: float = 30.0
    output_tokens: int = 32
    images: float = 0.3
    image_size: int = 448
    seed: int = 0
    key: str | None = None


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
    model = _model(load)
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
        whole.memory += _memory(load)
        for thread in threads:
            thread.join(timeout=max(0.1, load.seconds / 20) / clients)
    whole.seconds = time.perf_counter() - start
    whole.memory += _memory(load)
    for tally in tallies:
        whole.add(tally)
    return whole


def _client(load: Load, model: str, number: int, end: float, tally: Tally) -> None:
    random = np.random.default_rng([load.seed, number])
    while tally.requests == 0 or time.perf_counter() < end:
        tally.requests += 1
        try:
            _ask(load, _body(load, model, number, random), tally)
        except (OSError, HTTPException, ValueError) as error:
            reason = str(error) if isinstance(error, ValueError) else type(error).__name__
            tally.errors[reason] = tally.errors.get(reason, 0) + 1


def _ask(load: Load, body: bytes, tally: Tally) -> None:
    """One streamed answer; ValueError when it is none."""
    start = last = time.perf_counter()
    with _request(load, "POST", "/v1/chat/completions", body) as response:
        if response.status in (429, 503):
            tally.turned_away += 1
            response.read()
            time.sleep(float(response.headers.get("retry-after", 1)))
            return
        if response.status != 200:
            raise ValueError(f"status {response.status}: {response.read(300).decode(errors='replace')}")
        done = False
        for event in _events(response):
            done = event == "[DONE]"
            if done:
                break
            chunk = json.loads(event)
            if "error" in chunk:
                raise ValueError(chunk["error"]["message"])
            tally.tokens += (chunk.get("usage") or {}).get("completion_tokens", 0)
            if chunk["choices"] and chunk["choices"][0]["delta"].get("content"):
                now = time.perf_counter()
                if last > start:
                    tally.gaps.append((last, now))
                else:
                    tally.ttft_ms.append(1000 * (now - start))
                    tally.pictures += [(start, now)] if PICTURE in body else []
                last = now
        if not done:
            raise ValueError("a stream ended before [DONE]")


def _events(response: HTTPResponse) -> Iterator[str]:
    for line in response:
        if line.startswith(b"data: "):
            yield line[6:].decode().strip()


def _request(load: Load, method: str, path: str, body: bytes | None = None) -> HTTPResponse:
    """The response, whose closing ends the connection."""
    parts = urlsplit(load.url)
    kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=STALLED)
    headers = {"content-type": "application/json", "connection": "close"}
    if load.key:
        headers["authorization"] = f"Bearer {load.key}"
    connection.request(method, path, body, headers)
    return connection.getresponse()


def _model(load: Load) -> str:
    """The first model that is served; UserError when there is nobody to ask."""
    try:
        with _request(load, "GET", "/v1/models") as response:
            return str(json.loads(response.read())["data"][0]["id"])
    except (OSError, HTTPException, ValueError, LookupError, TypeError) as error:
        raise UserError(
            f"{load.url} does not tell its models ({type(error).__name__}): expected the address of a server "
            "of OpenAI's API, as in http://127.0.0.1:8080"
        ) from None


def _memory(load: Load) -> list[int]:
    """Resident bytes of the server, where it tells."""
    try:
        with _request(load, "GET", "/metrics") as response:
            lines = response.read().decode(errors="replace").splitlines()
    except (OSError, HTTPException):  # a busy server: the next look will do
        return []
    found = [line.split()[-1] for line in lines if line.startswith("process_resident_memory_bytes ")]
    return [int(float(value)) for value in found]


def _body(load: Load, model: str, number: int, random: np.random.Generator) -> bytes:
    text = " ".join(random.choice(WORDS, int(random.integers(8, 64))))
    content: list[dict[str, object]] = [{"type": "text", "text": text}]
    if random.random() < load.images:
        url = _picture(load.image_size, int(random.integers(PICTURES)))
        content.insert(0, {"type": "image_url", "image_url": {"url": url}})
    request = {
        "model": model,
        "user": f"client {number}",
        "messages": [{"role": "user", "content": content}],
        "max_tokens": load.output_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    return json.dumps(request).encode()


def _picture(size: int, seed: int) -> str:
    small = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(small).resize((size, size)).save(stream, "PNG")
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"


def _percentiles(values: list[float]) -> dict[str, float]:
    if not values:
        return {}
    p50, p95, p99 = np.percentile(values, (50, 95, 99))
    return {"p50": float(p50), "p95": float(p95), "p99": float(p99), "max": max(values)}
