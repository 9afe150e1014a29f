"""A client of a server of OpenAI's API: what it asks, and the events it hears."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Any
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


class TurnedAwayError(Exception):
    """A server that is full; the seconds after which to ask again."""

    def __init__(self, seconds: float) -> None:
        super().__init__("turned away")
        self.seconds = seconds


def chunks(load: Load, body: bytes) -> Iterator[dict[str, Any]]:
    """Every chunk of one streamed answer, as it comes. TurnedAwayError where the server is full, ValueError
    when the answer is none.
    """
    with request(load, "POST", "/v1/chat/completions", body) as response:
        if response.status in (429, 503):
            response.read()
            raise TurnedAwayError(float(response.headers.get("retry-after", 1)))
        if response.status != 200:
            raise ValueError(f"status {response.status}: {response.read(300).decode(errors='replace')}")
        for event in _events(response):
            if event == "[DONE]":
                return
            chunk = json.loads(event)
            if "error" in chunk:
                raise ValueError(chunk["error"]["message"])
            yield chunk
        raise ValueError("a stream ended before [DONE]")


def has_words(chunk: dict[str, Any]) -> bool:
    """Whether a chunk brings a part of the answer's text, or of what was thought before it."""
    delta = chunk["choices"][0]["delta"] if chunk["choices"] else {}
    return any(delta.get(name) for name in ("content", "reasoning", "reasoning_content"))


def tokens_of(chunk: dict[str, Any]) -> int:
    """Tokens of the whole answer, which its last chunk tells."""
    return int((chunk.get("usage") or {}).get("completion_tokens", 0))


def _events(response: HTTPResponse) -> Iterator[str]:
    for line in response:
        if line.startswith(b"data: "):
            yield line[6:].decode().strip()


def request(load: Load, method: str, path: str, body: bytes | None = None) -> HTTPResponse:
    """The response, whose closing ends the connection."""
    parts = urlsplit(load.url)
    kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=STALLED)
    headers = {"content-type": "application/json", "connection": "close"}
    if load.key:
        headers["authorization"] = f"Bearer {load.key}"
    connection.request(method, path, body, headers)
    return connection.getresponse()


def first_model(load: Load) -> str:
    """The first model that is served; UserError when there is nobody to ask."""
    try:
        with request(load, "GET", "/v1/models") as response:
            return str(json.loads(response.read())["data"][0]["id"])
    except (OSError, HTTPException, ValueError, LookupError, TypeError) as error:
        raise UserError(
            f"{load.url} does not tell its models ({type(error).__name__}): expected the address of a server "
            "of OpenAI's API, as in http://127.0.0.1:8080"
        ) from None


def memory(load: Load) -> list[int]:
    """Resident bytes of the server, where it tells."""
    try:
        with request(load, "GET", "/metrics") as response:
            lines = response.read().decode(errors="replace").splitlines()
    except (OSError, HTTPException):  # a busy server: the next look will do
        return []
    found = [line.split()[-1] for line in lines if line.startswith("process_resident_memory_bytes ")]
    return [int(float(value)) for value in found]


def words(random: np.random.Generator) -> str:
    """A question of 8 to 63 words that means nothing."""
    return " ".join(random.choice(WORDS, int(random.integers(8, 64))))


def question(load: Load, model: str, user: str, text: str, picture: int | None) -> bytes:
    """The body of a request; `picture` is the seed of the one it shows."""
    content: list[dict[str, object]] = [{"type": "text", "text": text}]
    if picture is not None:
        content.insert(0, {"type": "image_url", "image_url": {"url": _picture(load.image_size, picture)}})
    asked = {
        "model": model,
        "user": user,
        "messages": [{"role": "user", "content": content}],
        "max_tokens": load.output_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    return json.dumps(asked).encode()


def _picture(size: int, seed: int) -> str:
    small = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(small).resize((size, size)).save(stream, "PNG")
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"
