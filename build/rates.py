"""What this machine does in a second: operations, bytes read, bytes hashed."""

from __future__ import annotations

import hashlib
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Machine:
    """What was measured here: fp32 operations a second of matrix products, bytes a second read and hashed."""

    flops: float
    read: float
    hashed: float


def measure() -> Machine:
    """Rates that this machine keeps up, not its best moments; some four seconds in all."""
    a = np.ones((1536, 1536), np.float32)
    wide = np.ones((8192, 8192), np.float32)  # 256 MB: no cache holds it
    vector = np.ones(8192, np.float32)
    data = bytes(1 << 24)
    return Machine(
        flops=2 * 1536**3 / _typical(lambda: a @ a, 2.5),
        read=wide.nbytes / _typical(lambda: wide @ vector, 0.5),
        hashed=len(data) / _typical(lambda: hashlib.sha256(data), 0.5),
    )


def _typical(work: Callable[[], object], seconds: float) -> float:
    """The median time of `work`, done over and over for so long."""
    times: list[float] = []
    while sum(times) < seconds:
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return statistics.median(times)
