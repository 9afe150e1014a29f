"""Copies of requests to one more arm: its answers are measured and thrown away, no client waits for them."""

from __future__ import annotations

import time
from dataclasses import replace

from serve.router.exchange import Exchange
from serve.router.record import Record
from serve.router.router import Router


class Nobody:
    """The sink of a mirrored request."""

    def __init__(self, router: Router) -> None:
        self._router = router
        self.deadline = 0.0
        self.busy = False
        self.exchange: Exchange | None = None
        router.watched[self] = None

    def write(self, data: bytes) -> None:
        pass

    def pause(self) -> None:
        pass

    def resume(self) -> None:
        pass

    def done(self) -> None:
        self._router.watched.pop(self, None)

    def fail(self, status: int, message: str) -> None:
        self._router.watched.pop(self, None)

    def abort(self) -> None:
        self._router.watched.pop(self, None)

    def cut(self) -> None:
        """The router ends."""
        self._router.watched.pop(self, None)
        if self.exchange:
            self.exchange.client_lost()

    def expire(self) -> None:
        """The deadline has passed."""
        assert self.exchange
        self.exchange.expire()


def mirror(router: Router, original: Exchange, body: list[bytes]) -> None:
    """Sends a whole request (`body` as it is framed) to the mirror's arm, unless that is the arm it has."""
    live = original.live
    assert live.policy.mirror
    arm = live.policy.mirror.arm
    of = original.record
    if arm == of.assigned:
        return
    record = Record(
        time.monotonic(), of.address, of.method, of.target, of.experiment, of.version, mirror=True
    )
    record.assigned, record.reason, record.key = arm, "mirror", of.key
    record.request_model, record.request_id = of.request_model, of.request_id
    nobody = Nobody(router)
    nobody.exchange = Exchange(nobody, live, record, replace(original.request), (live.arms[arm],))
    nobody.exchange.kept = list(body)
    nobody.exchange.sent = True
    nobody.exchange.start()
    nobody.exchange.forward()
