"""Whatever is sent, an arm answers with a result or with what is wrong: no 5xx, no crash, no leak.

`make fuzz` sends 5,000 of each kind.
"""

from __future__ import annotations

import base64
import copy
import io
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from PIL import Image
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from engines.checkpoint import Checkpoint
from engines.export import export
from tests.live_arm import LiveArm, live_arm

CHECKS = [
    schemathesis.checks.not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
OPERATIONS = [
    ("/v1/chat/completions", "POST"),
    ("/chat/vision", "POST"),
    ("/v1/models", "GET"),
    ("/v1/models/{name}", "GET"),
    ("/health", "GET"),
    ("/ready", "GET"),
]


@pytest.fixture(scope="module")
def arm(micro_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveArm]:
    """Afterwards it runs, and holds no more memory and files than before; see `Watch`."""
    out, scratch = tmp_path_factory.mktemp("fuzz") / "micro", tmp_path_factory.mktemp("scratch")
    export(Checkpoint.open(micro_checkpoint), out)
    with live_arm(out, "--context=256", "--slots=4", TMPDIR=str(scratch)) as running:
        yield running
        assert running.process.poll() is None
        assert httpx2.get(f"{running.url}/ready").status_code == 200
        assert not list(scratch.glob("arm-*"))


class Watch:
    """Statuses of `count` answers, and twenty looks at the memory and files of whom they come from."""

    def __init__(self, arm: LiveArm, count: int) -> None:
        self._arm, self._every = arm, max(1, count // 20)
        self._vitals: list[tuple[float, float]] = []
        self.statuses: Counter[int] = Counter()

    def note(self, status: int) -> None:
        if self.statuses.total() % self._every == 0:
            lines = httpx2.get(f"{self._arm.url}/metrics").text.splitlines()
            found = {line.split()[0]: float(line.split()[1]) for line in lines if line.startswith("process_")}
            self._vitals.append((found["process_resident_memory_bytes"], found["process_open_fds"]))
        self.statuses[status] += 1

    def check(self, what: str) -> None:
        """Of the last half. Of 5,000 requests the first fill what an arm remembers of pictures, 64 MB."""
        memory, files = np.array(self._vitals[len(self._vitals) // 2 :]).T
        slope = np.polyfit(np.arange(len(memory)) * self._every, memory, 1)[0] if len(memory) > 1 else 0.0
        count, (first, last) = self.statuses.total(), memory[[0, -1]] / 1e6
        print(
            f"{what}: {count} requests, statuses {dict(self.statuses)}, memory {first:.0f} to "
            f"{last:.0f} MB, {slope:+.0f} bytes a request, {files[0]:.0f} to {files[-1]:.0f} files"
        )
        assert memory[-1] - memory[0] < (20e6 if count >= 4000 else 80e6)
        assert files[-1] <= files[0] + 2


@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_the_document_is_true(arm: LiveArm, path: str, method: str, request: pytest.FixtureRequest) -> None:
    schema = schemathesis.openapi.from_url(f"{arm.url}/openapi.json")
    count = request.config.getoption("--fuzz") if method == "POST" else 5
    watch = Watch(arm, count)

    @settings(
        max_examples=count,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=schema[path][method].as_strategy())
    def ask(case: Any) -> None:
        watch.note(case.call_and_validate(checks=CHECKS, timeout=120).status_code)

    ask()
    watch.check(f"{method} {path}")


def picture(random: np.random.Generator) -> bytes:
    """Of any format and mode, often damaged."""
    pixels = random.integers(0, 256, (int(random.integers(1, 90)), int(random.integers(1, 90)), 4), np.uint8)
    image = Image.fromarray(pixels)
    kind, mode = (
        ("PNG", "RGBA"),
        ("PNG", "I;16"),
        ("JPEG", "CMYK"),
        ("GIF", "P"),
        ("WEBP", "RGB"),
        ("BMP", "1"),
    )[random.integers(6)]
    stream = io.BytesIO()
    (image.convert("I") if mode == "I;16" else image).convert(mode).save(stream, kind)
    data = bytearray(stream.getvalue())
    if random.random() < 0.4:
        for at in random.integers(0, len(data), random.integers(1, 9)):
            data[at] = random.integers(256)
    return bytes(data[: random.integers(1, len(data))] if random.random() < 0.1 else data)


ODD: list[Any] = [
    *(
        None,
        True,
        0,
        -1,
        1,
        2**63,
        -(2**70),
        0.5,
        1e308,
        "",
        "x",
        "\0",
        "\ud800",
        "<|image_pad|>",
        "<|im_end|>",
    ),
    *(
        [],
        {},
        [[]],
        [None],
        {"": {}},
        "A" * 3000,
        ["a"] * 40,
        "data:image/png;base64,",
        "http://127.0.0.1:1/",
    ),
    *({"type": "text", "text": "a"}, {"role": "tool", "content": "a"}, "required", {"type": "object"}),
]


def base(random: np.random.Generator) -> dict[str, Any]:
    """A request that uses much of the API."""
    kind = "image_url" if random.random() < 0.9 else "video_url"
    data = base64.b64encode(picture(random)).decode()
    media = {"type": kind, kind: {"url": f"data:image/png;base64,{data}"}}
    function = {"name": "zoom", "parameters": {"type": "object", "properties": {"by": {"type": "integer"}}}}
    messages: list[Any] = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [media, {"type": "text", "text": "What?"}]},
    ]
    if random.random() < 0.3:
        messages = [{"role": "user", "content": "BORA?"}]
    extras: dict[str, Any] = {
        "tools": [{"type": "function", "function": function}],
        "response_format": {
            "type": "json_schema",
            "json_schema": {
                "name": "a",
                "schema": {"type": "object", "properties": {"a": {"pattern": "^a+$"}}},
            },
        },
        "stop": ["a", "b"],
        "logit_bias": {"5": 1, "7": -100},
        "stream": True,
        "seed": 3,
        "n": 2,
        "frequency_penalty": 1.5,
        "top_logprobs": 3,
    }
    chosen = {name: value for name, value in extras.items() if random.random() < 0.3}
    if "top_logprobs" in chosen:
        chosen["logprobs"] = True
    return {"messages": messages, "max_tokens": 8, "temperature": 0.7, **chosen}


def mutated(value: Any, random: np.random.Generator) -> Any:
    """With something somewhere in it replaced, removed, doubled or added."""
    if not isinstance(value, (dict, list)) or not value or random.random() < 0.15:
        return ODD[random.integers(len(ODD))]
    found = copy.copy(value)
    keys = list(found) if isinstance(found, dict) else list(range(len(found)))
    key = keys[random.integers(len(keys))]
    choice = random.random()
    if choice < 0.1:
        del found[key]
    elif choice < 0.2 and isinstance(found, list):
        found.append(found[key])
    elif choice < 0.2:
        found[["", "extra", "type", "content"][random.integers(4)]] = ODD[random.integers(len(ODD))]
    else:
        found[key] = mutated(found[key], random)
    return found


def body(random: np.random.Generator) -> bytes:
    request = base(random)
    for _ in range([0, 0, 1, 2][random.integers(4)]):
        request = mutated(request, random)
    data = bytearray(json.dumps(request).encode())
    if random.random() < 0.1:
        for at in random.integers(0, len(data), 4):
            data[at] = random.integers(256)
    return bytes(data)


def test_mutated_requests_and_pictures(arm: LiveArm, request: pytest.FixtureRequest) -> None:
    count = request.config.getoption("--fuzz")
    random, watch = np.random.default_rng(0), Watch(arm, count)
    with httpx2.Client(timeout=60) as client:
        for _ in range(count):
            sent = body(random)
            found = client.post(f"{arm.url}/v1/chat/completions", content=sent)
            watch.note(found.status_code)
            assert found.status_code in (200, 400, 404), (found.text, sent)
            if found.status_code != 200:
                assert found.json()["error"]["message"]
            elif found.headers["content-type"] == "application/json":
                assert found.json()["choices"]
            else:
                assert found.text.endswith("data: [DONE]\n\n")
    assert len(watch.statuses) > 1  # not all of them are refused
    watch.check("mutated requests and pictures")
