"""glibc's allocator, told to give back what is free: after a week an arm takes as much as after an hour."""

from __future__ import annotations

import ctypes

# mallopt(3). Every thread would keep free memory in an arena of its own, of which there may be eight for
# each core; and the limits below would rise to 32 and 64 MiB with the first large array that is freed.
M_ARENA_MAX, M_MMAP_THRESHOLD, M_TRIM_THRESHOLD = -8, -3, -1
LARGE = 4 << 20  # bytes; above what choosing a token takes, or each token would get its memory anew


def keep_memory_flat() -> None:
    """To be called before threads start; does nothing where the C library is another one."""
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        for parameter, value in ((M_ARENA_MAX, 1), (M_MMAP_THRESHOLD, LARGE), (M_TRIM_THRESHOLD, LARGE)):
            mallopt(parameter, value)
