"""What a build says while it runs, on stderr: a progress bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console as Rich
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from engines.units import duration

LINE_EVERY_S = 10.0  # a CI log wants to know that a long stage is alive, not each of its steps
RECENT = 8  # reports whose pace tells the time remaining: layers and batches differ along the way

Report = Callable[[int, int], None]


@dataclass
class Pace:
    """The time remaining, from how fast the last units went; what an earlier run did has no pace."""

    recent: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=RECENT))

    def seconds_left(self, done: int, total: int, now: float) -> float | None:
        """None until a unit has been seen to finish. Fewer units done than before begin a new count."""
        if self.recent and done < self.recent[-1][0]:
            self.recent.clear()
        self.recent.append((done, now))
        first, began = self.recent[0]
        return (now - began) / (done - first) * (total - done) if done > first else None


class Console:
    """Lines and progress on stderr; stdout belongs to results."""

    def __init__(self) -> None:
        self.rich = Rich(stderr=True, highlight=False)
        self.began = time.monotonic()

    def __reduce__(self) -> tuple[type[Console], tuple[()]]:
        """Sent along with work, it becomes the console of the machine that does the work."""
        return Console, ()

    def say(self, line: str) -> None:
        elapsed = time.monotonic() - self.began
        if self.rich.is_terminal:
            self.rich.print(f"[dim]{elapsed:6.1f}s[/dim] ", end="")
            self.rich.print(line, markup=False)
        else:
            print(f"{elapsed:6.1f}s {line}", file=sys.stderr, flush=True)

    @contextmanager
    def progress(self, title: str) -> Iterator[Report]:
        """Yields a function of (done, total), to be called at the start and after every unit of work."""
        pace = Pace()
        if not self.rich.is_terminal:
            yield _plain(self, title, pace)
            return
        columns = (
            TextColumn("        {task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]}"),
        )
        with Progress(*columns, console=self.rich, transient=True) as bar:
            task = bar.add_task(title, total=None, left="")

            def report(done: int, total: int) -> None:
                left = _left(pace.seconds_left(done, total, time.monotonic()))
                bar.update(task, completed=done, total=total, left=left)

            yield report


def _plain(console: Console, title: str, pace: Pace) -> Report:
    printed = time.monotonic()

    def report(done: int, total: int) -> None:
        nonlocal printed
        now = time.monotonic()
        left = pace.seconds_left(done, total, now)
        if now - printed >= LINE_EVERY_S and done < total:
            printed = now
            told = _left(left)
            console.say(f"{title}: {done}/{total}{', ' + told if told else ''}")

    return report


def _left(seconds: float | None) -> str:
    return "" if seconds is None else f"about {duration(seconds)} to go"
