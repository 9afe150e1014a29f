"""Which arm is asked next."""

from __future__ import annotations

from serve.router.arm import Arm
from serve.router.record import Record


class Attempts:
    """The assigned arm, again while retries last, then its fallbacks.

    An arm whose breaker lets one trial at a time through is passed over while that trial is under way, and
    asked all the same where no other arm is left: to try it is better than to refuse for certain.
    """

    __slots__ = ("_arms", "_passed", "_record", "_retries")

    def __init__(self, arms: tuple[Arm, ...], record: Record, retries: int) -> None:
        """The assigned arm first. Why it did not answer goes into `record`."""
        self._arms = arms
        self._passed: tuple[Arm, ...] = ()
        self._record = record
        self._retries = retries

    @property
    def others(self) -> bool:
        """Whether another arm than the one asked now may still get its turn."""
        return len(self._arms) > 1 or bool(self._passed)

    def take(self) -> Arm | None:
        """The next that may be asked, of whose breaker this request is admitted; None where none may."""
        while self._arms:
            arm = self._arms[0]
            why = arm.refusal()
            if why is None:
                return arm
            if why == "breaker_open":
                self._passed += (arm,)
            self.skip(why)
        while self._passed:
            arm, *rest = self._passed
            self._passed = tuple(rest)
            if arm.refusal(pressed=True) is None:
                self._arms = (arm,)
                if arm.name == self._record.assigned:
                    self._record.fallback = None
                return arm
        return None

    def lost(self, why: str) -> None:
        """The arm did not answer: it may have further attempts."""
        if self._retries and self._arms[0].name == self._record.assigned:
            self._retries -= 1
        else:
            self.skip(why)

    def skip(self, why: str) -> None:
        """The arm has had its turn."""
        if self._arms[0].name == self._record.assigned:
            self._record.fallback = why
        self._arms = self._arms[1:]
