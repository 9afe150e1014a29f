"""A circuit breaker: failures in a row open it, a trial request closes it again."""

from __future__ import annotations

import time


class Breaker:
    """Closed admits all, open none, half-open one at a time, unless pressed; its outcome decides."""

    __slots__ = ("failures", "limit", "open_s", "opened_at", "trial")

    def __init__(self, limit: int, open_s: float) -> None:
        self.limit = limit
        self.open_s = open_s
        self.failures = 0
        self.opened_at: float | None = None
        self.trial = False

    @property
    def state(self) -> str:
        """closed, open or half-open."""
        if self.opened_at is None:
            return "closed"
        return "half-open" if time.monotonic() - self.opened_at >= self.open_s else "open"

    def admit(self, pressed: bool = False) -> bool:
        """Whether a request may go; each admitted one must end in `success`, `failure` or `abandon`.

        pressed: while a trial is under way, too.
        """
        if self.opened_at is None:
            return True
        if self.state == "open" or (self.trial and not pressed):
            return False
        self.trial = True
        return True

    def success(self) -> None:
        """The arm answered."""
        self.failures = 0
        self.opened_at = None
        self.trial = False

    def failure(self) -> None:
        """The arm did not answer, or answered with an error of its own."""
        self.failures += 1
        if self.trial or self.failures >= self.limit:
            self.opened_at = time.monotonic()
        self.trial = False

    def abandon(self) -> None:
        """The client left before anything was known."""
        self.trial = False
