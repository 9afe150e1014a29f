"""The latest latencies of each arm, for the page at the admin port: quantiles of what users see now."""

from __future__ import annotations

from collections import deque
from typing import Any

from serve.report.quantiles import quantiles
from serve.router.record import Record

KEPT = 1000  # requests of an arm


class Recent:
    """By the arm a request was assigned to; whole answers only."""

    def __init__(self) -> None:
        self._arms: dict[str, dict[str, deque[float]]] = {}

    def observe(self, record: Record) -> None:
        """A request has ended."""
        if record.mirror or not record.assigned or record.status >= 400 or record.error or record.fallback:
            return
        kept = self._arms.setdefault(record.assigned, {})
        for name, seconds in (("ttft", record.ttft), ("itl", record.itl), ("e2e", record.e2e)):
            if seconds is not None:
                kept.setdefault(name, deque(maxlen=KEPT)).append(seconds * 1000)

    def figures(self, arm: str) -> dict[str, Any]:
        """In ms, by measure and quantile: estimate, low and high; None where there are too few."""
        return {
            name: {
                q: found and [round(end, 3) for end in (found.estimate, found.low, found.high)]
                for q, found in quantiles(values).items()
            }
            for name, values in self._arms.get(arm, {}).items()
        }
