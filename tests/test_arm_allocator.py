"""What threads free goes back to the system."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.conftest import ROOT

# Twelve threads, one after another and all alive: each keeps a little, at the end, of the 20 MB that it had.
KEPT = """
import sys, threading
from bench.resources import resident_now
from serve.arm.allocator import keep_memory_flat

def work():
    arrays = [bytearray(100_000) for _ in range(200)]
    kept.append(arrays.pop())
    arrays.clear()
    done.set()
    over.wait()

if sys.argv[1] == "told":
    keep_memory_flat()
kept, over, before = [], threading.Event(), resident_now()
for _ in range(12):
    done = threading.Event()
    threading.Thread(target=work).start()
    done.wait()
print(resident_now() - before)
over.set()
"""


@pytest.mark.parametrize("told", [True, False])
def test_threads_share_what_is_free(told: bool) -> None:
    """Untold they do not, or this would show nothing."""
    line = [sys.executable, "-c", KEPT, "told" if told else "untold"]
    kept = int(subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60).stdout)
    assert (kept < 60_000_000) == told, kept
