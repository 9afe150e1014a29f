"""How far transfers are, on stderr: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock

from tqdm import tqdm

from engines.units import human_size

LINE_EVERY_S = 10.0


@contextmanager
def transfers(title: str, total: int) -> Iterator[Callable[[str, int], None]]:
    """Yields a function of (digest, bytes there by now), which threads may call."""
    done: dict[str, int] = {}
    lock, printed = Lock(), time.monotonic()
    with tqdm(total=total, desc=title, unit="B", unit_scale=True, disable=not sys.stderr.isatty()) as bar:

        def report(digest: str, count: int) -> None:
            nonlocal printed
            with lock:
                done[digest] = count
                bar.n = sum(done.values())
                bar.refresh()
                if bar.disable and time.monotonic() - printed >= LINE_EVERY_S:
                    printed = time.monotonic()
                    so_far = f"{human_size(sum(done.values()))} of {human_size(total)}"
                    print(f"{title}: {so_far}", file=sys.stderr, flush=True)

        yield report
