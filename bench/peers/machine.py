"""What the table was measured on: the processor, and how fast it reads and multiplies on so many threads."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
# Instructions that 4-bit and 8-bit kernels are written for, as Linux spells them.
FLAGS = (
    "avx2",
    "avx_vnni",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "amx_int8",
    "amx_bf16",
    "asimddp",
    "i8mm",
)
BUFFER = 512 << 20  # bytes read at a time: far more than any cache
GEMM = 2048


@dataclass(frozen=True)
class Machine:
    """Where and of what the measurement was made."""

    processor: str
    instructions: tuple[str, ...]
    cores: int
    memory_bytes: int
    system: str
    commit: str


@dataclass(frozen=True)
class Speed:
    """Best of a few tries: bytes read and fp32 operations, each a second."""

    read: float
    fp32: float


def machine() -> Machine:
    """This machine."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    found = set((fields.get("flags") or fields.get("Features") or "").split())
    return Machine(
        processor=fields.get("model name") or platform.processor() or platform.machine(),
        instructions=tuple(flag for flag in FLAGS if flag in found),
        cores=os.cpu_count() or 1,
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        system=f"{platform.system()} {platform.release().split('-')[0]}",
        commit=_commit(),
    )


def speed(threads: int, tries: int = 3) -> Speed:
    """How fast `threads` threads read memory that is in no cache and multiply matrices that are."""
    parts = np.array_split(np.ones(BUFFER, np.int8), threads)
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((GEMM, GEMM), dtype=np.float32) for _ in range(2))
    with ThreadPoolExecutor(threads) as pool:
        read = min(_seconds(lambda: list(pool.map(np.ndarray.max, parts))) for _ in range(tries))
    gemm = min(_seconds(lambda: a @ b) for _ in range(tries))
    return Speed(BUFFER / read, 2 * GEMM**3 / gemm)


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _commit() -> str:
    """The checkout's commit, and whether files differ from it."""
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"], cwd=ROOT, capture_output=True, text=True
    )
    return done.stdout.strip() or "unknown"
