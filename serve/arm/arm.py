"""The state of an arm that its requests share: the model, who is in, and whether it is open."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from serve.arm.errors import overloaded
from serve.arm.media import Limits
from serve.arm.metrics import Metrics
from serve.arm.model import Model


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
    """`readers` decode and tokenise; `eyes` is the one thread of the vision tower."""

    settings: Settings
    metrics: Metrics = field(default_factory=Metrics)
    model: Model | None = None
    draining: bool = False
    sequences: int = 0
    started: int = field(default_factory=lambda: int(time.time()))
    readers: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(2, "reader"))
    eyes: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "vision"))

    @property
    def status(self) -> Literal["ok", "loading", "draining", "failed"]:
        if self.model and self.model.scheduler.failure:
            return "failed"
        if self.draining:
            return "draining"
        return "ok" if self.model else "loading"

    @contextmanager
    def admitted(self, count: int) -> Iterator[Model]:
        """Room for a request of `count` sequences, or ApiError at once: better now than in a minute."""
        if self.model is None or self.status != "ok":
            raise overloaded(f"the arm is {self.status}: ask again later", retry_after=5)
        if self.sequences + count > self.settings.slots + self.settings.queue:
            raise overloaded("the queue is full: ask again later", status=429)
        self.sequences += count
        try:
            yield self.model
        finally:
            self.sequences -= count

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
