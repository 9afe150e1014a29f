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
        self._arms: dict[str, deque[tuple[float | None, float | None, float]]] = {}  # ttft, itl, e2e; seconds

    def observe(self, record: Record) -> None:
        """A request has ended."""
        if record.mirror or not record.assigned or record.status >= 400 or record.error or record.fallback:
            return
        kept = self._arms.get(record.assigned)
        if kept is None:
            kept = self._arms[record.assigned] = deque(maxlen=KEPT)
        kept.append((record.ttft, record.itl, record.e2e))

    def figures(self, arm: str) -> dict[str, Any]:
        """In ms, by measure and quantile: estimate, low and high; None where there are too few."""
        columns = zip(*self._arms.get(arm, ()), strict=True)
        measured = {
            name: [1000 * value for value in column if value is not None]
            for name, column in zip(("ttft", "itl", "e2e"), columns, strict=False)
        }
        return {
            name: {
                q: found and [round(end, 3) for end in (found.estimate, found.low, found.high)]
                for q, found in quantiles(values).items()
            }
            for name, values in measured.items()
            if values
        }
