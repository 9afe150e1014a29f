"""The state of an arm that its requests share: the model, who is in, and whether it is open."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from serve.arm.errors import ApiError, overloaded
from serve.arm.media import Limits
from serve.arm.metrics import Metrics
from serve.arm.model import Model
from serve.arm.turns import Client, Gate

SEEING = 3  # requests whose pictures are read, seen, or next to be computed: more would be memory for nothing


@dataclass(frozen=True)
class Settings:
    """What an arm is started with. queue: sequences that may wait for a slot; seconds: of a whole request;
    origins: of web pages that may ask it, besides its own."""

    name: str
    slots: int = 8
    queue: int = 64
    seconds: float = 600.0
    api_key: str | None = None
    origins: tuple[str, ...] = ()
    variant: str | None = None
    digest: str | None = None
    limits: Limits = field(default_factory=Limits)


@dataclass(eq=False)
class Arm:
    """`readers` decode and tokenise; `eyes` is the thread of the vision tower, and `seeing` whose turn it is.

    clients: sequences of each; body_bytes: of all requests that are being read or answered.
    """

    settings: Settings
    metrics: Metrics = field(default_factory=Metrics)
    model: Model | None = None
    draining: bool = False
    body_bytes: int = 0
    clients: Counter[Client] = field(default_factory=Counter)
    started: int = field(default_factory=lambda: int(time.time()))
    readers: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(2, "reader"))
    eyes: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "vision"))
    seeing: Gate = field(default_factory=lambda: Gate(SEEING))

    def __post_init__(self) -> None:
        self.metrics.bodies.set_function(lambda: self.body_bytes)
        self.metrics.waiting.set_function(self._waiting)

    def _waiting(self) -> int:
        return max(0, self.sequences - self.model.scheduler.busy) if self.model else 0

    @property
    def status(self) -> Literal["ok", "loading", "draining", "failed"]:
        if self.model and self.model.scheduler.failure:
            return "failed"
        if self.draining:
            return "draining"
        return "ok" if self.model else "loading"

    @property
    def sequences(self) -> int:
        """In a slot or on the way to one."""
        return self.clients.total()

    @contextmanager
    def admitted(self, client: Client, count: int) -> Iterator[Model]:
        """Room for a request of `count` sequences, or ApiError at once: better now than in a minute.

        Who has nothing here finds room even behind others' full queue, up to twice its length.
        """
        if self.model is None or self.status != "ok":
            raise overloaded(f"the arm is {self.status}: ask again later", retry_after=5)
        places = self.settings.slots + self.settings.queue
        if count > places:
            raise ApiError(400, f"n is {count}: this arm takes at most {places}", param="n")
        room = 0 if self.clients[client] else self.settings.queue
        if self.sequences + count > places + room:
            raise overloaded("the queue is full: ask again later", status=429)
        self.clients[client] += count
        try:
            yield self.model
        finally:
            self.clients[client] -= count
            self.clients += Counter()  # forgets who is at zero

    def check_name(self, name: str | None) -> None:
        """ApiError when a request is for another model."""
        if name not in (None, self.settings.name):
            raise ApiError(
                404,
                f"the model {name} is not here: this arm serves {self.settings.name}",
                param="model",
                code="model_not_found",
            )

    def card(self) -> dict[str, Any]:
        """What /v1/models tells."""
        return {
            "id": self.settings.name,
            "created": self.started,
            "variant": self.settings.variant,
            "digest": self.settings.digest,
            "max_model_len": self.model.slots.capacity if self.model else None,
        }

    def close(self) -> None:
        """End the threads."""
        if self.model:
            self.model.scheduler.stop()
        self.readers.shutdown()
        self.eyes.shutdown()
