"""What clients ask: words and pictures, streams and not, JSON, tools; some leave, some are wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bench.client import Load, question, words

CHAT = "/v1/chat/completions"
USERS = 500
PICTURES = 8
SIZES = (32, 64, 96)
LONG_TEXT = " ".join(("what is under the red shape",) * 20)
SHARES = {  # of the requests, in percent
    "text": 28,
    "stream": 26,
    "long stream": 6,
    "picture": 8,
    "picture stream": 8,
    "json": 6,
    "tool": 6,
    "leaves": 6,
    "wrong": 6,
}
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"place": {"enum": ["Oslo", "Quito"]}, "days": {"type": "integer", "maximum": 9}},
            "required": ["place"],
            "additionalProperties": False,
        },
    },
}


@dataclass(frozen=True)
class Request:
    """at_s: after the start of the run; leaves_s: after which its client hangs up; status: what is due."""

    id: str
    kind: str
    at_s: float
    body: bytes
    user: str
    status: int = 200
    leaves_s: float | None = None
    method: str = "POST"
    path: str = CHAT
    headers: dict[str, str] = field(default_factory=dict)


def requests(rate: float, seconds: float, seed: int) -> Iterator[Request]:
    """Poisson arrivals, `rate` a second."""
    random = np.random.default_rng(seed)
    kinds, shares = list(SHARES), np.array(list(SHARES.values())) / 100
    at, number = 0.0, 0
    while (at := at + random.exponential(1 / rate)) < seconds:
        kind = str(random.choice(kinds, p=shares))
        user = f"user-{random.integers(USERS)}"
        asked = _wrong(random) if kind == "wrong" else _right(kind, random)
        yield Request(f"endurance-{seed}-{number}", kind, at, user=user, **asked)
        number += 1


def _right(kind: str, random: np.random.Generator) -> dict[str, Any]:
    # Few pictures, and long ones equally long: an arm remembers all of those, and fills each row of its cache
    # as far as it ever will, while it warms up.
    picture = int(random.integers(PICTURES)) if "picture" in kind else None
    load = Load("", image_size=SIZES[(picture or 0) % 3], output_tokens=int(random.integers(4, 40)))
    text = LONG_TEXT if kind == "long stream" else words(random)
    body = json.loads(question(load, "any", "anybody", text, picture))
    del body["model"]  # each arm has one
    leaves_s = None
    if kind == "long stream":
        body["max_tokens"] = 600
    elif kind == "leaves":
        body["max_tokens"] = 400
        body["stream"] = bool(random.integers(2))
        leaves_s = float(random.uniform(0.001, 0.4))
    elif "stream" not in kind:
        body["stream"] = False
    if kind == "json":
        body |= {"response_format": {"type": "json_object"}, "ignore_eos": False}
    elif kind == "tool":
        body |= {"tools": [WEATHER], "tool_choice": "required", "ignore_eos": False}
    if not body["stream"]:
        del body["stream_options"]
    return {"body": json.dumps(body).encode(), "leaves_s": leaves_s}


def _wrong(random: np.random.Generator) -> dict[str, Any]:
    asked: dict[str, Any] = {"messages": [{"role": "user", "content": "What?"}], "max_tokens": 4}
    no_picture = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]
    cases: list[dict[str, Any]] = [
        {"body": b'{"messages": [', "status": 400},
        {"body": json.dumps(asked | {"colour": "red"}).encode(), "status": 400},
        {"body": json.dumps({"messages": [{"role": "user", "content": no_picture}]}).encode(), "status": 400},
        {"body": json.dumps(asked).encode(), "path": "/v1/nothing", "status": 404},
        {"body": b"", "method": "GET", "status": 405},
        {"body": json.dumps(asked).encode(), "headers": {"expect": "nothing"}, "status": 417},
    ]
    return cases[int(random.integers(len(cases)))]
