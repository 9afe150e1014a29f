"""Processes that end with the one that started them, however that ends: what is killed cannot stop its own.

Left alone, the work of a killed run would go on beside the next one's, in the same folders. Linux only;
elsewhere they end by themselves.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of sys/prctl.h


def end_with(parent: int) -> None:
    """From now on this process is killed when that one dies, which started it; if it has already, at once."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def bound(command: Sequence[str]) -> list[str]:
    """The same command as one that ends with this process."""
    return [sys.executable, "-IS", __file__, str(os.getpid()), *command]


if __name__ == "__main__":
    end_with(int(sys.argv[1]))
    try:
        os.execvp(sys.argv[2], sys.argv[2:])
    except OSError as error:
        sys.exit(f"error: {sys.argv[2]}: {error.strerror}")
