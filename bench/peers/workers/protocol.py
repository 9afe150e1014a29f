"""The worker's side of the conversation: a line of JSON on stdin is a request, one on stdout the answer."""

from __future__ import annotations

import itertools
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

Tokens = list[int]


@dataclass(frozen=True)
class About:
    """What a loaded model is made of; sizes in bytes."""

    engine: str  # with its version
    kv_cache: str  # type of keys and values, the engine's default
    kv_value_bytes: float
    read_bytes: int  # weights read for each decoded token
    text_bytes: int  # on disk, all that answering text takes
    vision_bytes: int


class Model(Protocol):
    """A loaded model. Greedy; sequences of a batch are equally long."""

    about: About

    def generate(self, prompts: list[Tokens], count: int) -> list[float]:
        """Seconds to the first of `count` tokens of every sequence, then for each of the others."""

    def vision(self, image: Path) -> float:
        """Seconds the vision tower takes for an image; NotImplementedError tells why there is none."""


def serve(load: Callable[..., Model]) -> None:
    """Load the model of the command line (MODEL THREADS [DEVICE]), say so, answer until stdin ends."""
    # Libraries print to stdout; the conversation keeps it to itself.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def answer(**fields: Any) -> None:
        answers.write(json.dumps(fields) + "\n")

    try:
        start = time.perf_counter()
        model = load(Path(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
        answer(load=time.perf_counter() - start, **asdict(model.about))
    except Exception as error:
        return answer(error=one_line(error))
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if "vision" in request:
                answer(seconds=model.vision(Path(request["vision"])))
            else:
                answer(seconds=model.generate(request["generate"], request["count"]))
        except Exception as error:
            answer(error=one_line(error))
    return None


def stepwise(
    prefill: Callable[[list[Tokens]], Any], step: Callable[[Any], Any], prompts: list[Tokens], count: int
) -> list[float]:
    """Model.generate for an engine that is driven token by token: each function gives the next tokens."""
    times = [time.perf_counter()]
    tokens = prefill(prompts)
    times.append(time.perf_counter())
    for _ in range(count - 1):
        tokens = step(tokens)
        times.append(time.perf_counter())
    return [after - before for before, after in itertools.pairwise(times)]


def size(*paths: Path) -> int:
    """Bytes of files and of all files in folders."""
    files = [file for path in paths for file in ([path] if path.is_file() else path.rglob("*"))]
    return sum(file.stat().st_size for file in files if file.is_file())


def one_line(error: BaseException) -> str:
    """An error as people read it in a table."""
    text = " ".join(str(error).split())
    return text[:300] if isinstance(error, NotImplementedError) else f"{type(error).__name__}: {text}"[:300]
