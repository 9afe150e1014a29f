"""What a build says while it runs, on stderr: a progress bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console as Rich
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

LINE_EVERY_S = 10.0  # a CI log wants to know that a long stage is alive, not each of its steps

Report = Callable[[int, int], None]


class Console:
    """Lines and progress on stderr; stdout belongs to results."""

    def __init__(self) -> None:
        self.rich = Rich(stderr=True, highlight=False)
        self.began = time.monotonic()

    def say(self, line: str) -> None:
        elapsed = time.monotonic() - self.began
        if self.rich.is_terminal:
            self.rich.print(f"[dim]{elapsed:6.1f}s[/dim] ", end="")
            self.rich.print(line, markup=False)
        else:
            print(f"{elapsed:6.1f}s {line}", file=sys.stderr, flush=True)

    @contextmanager
    def progress(self, title: str) -> Iterator[Report]:
        """Yields a function of (done, total)."""
        if self.rich.is_terminal:
            columns = (
                TextColumn("        {task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
            )
            with Progress(*columns, console=self.rich, transient=True) as bar:
                task = bar.add_task(title, total=None)
                yield lambda done, total: bar.update(task, completed=done, total=total)
        else:
            yield _plain(self, title)


def _plain(console: Console, title: str) -> Report:
    began = last = time.monotonic()

    def report(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= LINE_EVERY_S and done:
            last = now
            remaining = (now - began) / done * (total - done)
            console.say(f"{title}: {done}/{total}, about {remaining:.0f} s to go")

    return report
