"""Processes that are killed (SIGKILL) at a chosen moment: the n-th change they make to files below a folder,
or request they send.

Changes are counted by Python's audit events, which come before the change. A file that is opened for writing
has two moments: nothing of it there yet, and its beginning there, as a cut-off write leaves it.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sys
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.truncate", "os.chmod"}
WRITING = os.O_WRONLY | os.O_RDWR
NEVER = 1_000_000_000


def watch(root: Path, moment: Callable[[Callable[[], None]], None]) -> None:
    """Calls `moment` before each change below `root`, which is spelt as the changes are. What it is called
    with does as much of the change as a killed process may have done.
    """
    inside = f"{root}{os.sep}"

    def hook(event: str, details: tuple[Any, ...]) -> None:
        if event not in {"open", *CHANGES}:
            return
        path = details[0]
        if not isinstance(path, str | bytes | os.PathLike):  # a descriptor's: it was seen when it was opened
            return
        where = str(Path.cwd() / os.fsdecode(path))
        of_rmtree = event in ("os.remove", "os.rmdir") and details[-1] != -1  # by a folder's descriptor
        if not of_rmtree and not where.startswith(inside):
            return
        if event in CHANGES:
            moment(lambda: None)
        elif details[2] & WRITING:
            moment(lambda: None)
            moment(lambda: _begin(where, details[2]))

    sys.addaudithook(hook)


def _begin(path: str, flags: int) -> None:
    try:
        file = os.open(path, flags, 0o600)
    except OSError:
        return
    if flags & (os.O_TRUNC | os.O_APPEND):
        os.write(file, b"{")


def lives(moment: int, root: Path, function: Callable[..., Any], *arguments: Any) -> int:
    """Calls a module's function in a process of its own, to be killed at that moment. How many there were
    when it came to its end; 0 when it did not."""
    context = multiprocessing.get_context("forkserver")  # forked from one that has nothing but the modules
    context.set_forkserver_preload([f"tests.{function.__module__}"])  # found from here
    seen = context.Value("q", 0)
    process = context.Process(target=_call, args=(moment, seen, root, function, arguments))
    process.start()
    process.join(120)
    assert process.exitcode in (0, -signal.SIGKILL), process.exitcode
    return 0 if process.exitcode else int(seen.value)


def _call(
    moment: int, seen: Any, root: Path, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    import httpx2

    def count(cut: Callable[[], None]) -> None:
        seen.value += 1
        if seen.value == moment:
            cut()
            os.kill(os.getpid(), signal.SIGKILL)

    def send(*arguments: Any, **options: Any) -> httpx2.Response:
        count(lambda: None)
        return sending(*arguments, **options)

    sending = httpx2.Client.send
    httpx2.Client.send = send  # type: ignore[method-assign]
    watch(root, count)
    function(*arguments)


def watch_all() -> None:
    """In a process and all that it starts, as the environment says: CRASH_COUNT is a file that grows by a
    byte with each moment, CRASH_BELOW what is watched; at the CRASH_MOMENT-th the first process is killed."""
    first = int(os.environ.setdefault("CRASH_FIRST", str(os.getpid())))
    counted, last = Path(os.environ["CRASH_COUNT"]), int(os.environ["CRASH_MOMENT"])

    def moment(cut: Callable[[], None]) -> None:
        with counted.open("ab", buffering=0) as file:  # below nothing that is watched
            file.write(b".")
            now = os.fstat(file.fileno()).st_size
        if now >= last:  # more than one process may be at it
            cut()
            os.kill(first, signal.SIGKILL)

    watch(Path(os.environ["CRASH_BELOW"]), moment)


def every_moment(folder: Path) -> Iterator[tuple[int, Path]]:
    """1, 2, 3, … with a new folder each: to be left when one comes too late."""
    for moment in count(1):
        assert moment < 300, "it never ends"
        root = folder / str(moment)
        root.mkdir()
        yield moment, root


def some_moments(
    number: int, seed: str, root: Path, function: Callable[..., Any], *arguments: Any
) -> list[int]:
    """So many of the function's moments, drawn from a seed; it is called once to count them."""
    of = lives(NEVER, root, function, *arguments)
    return sorted(random.Random(seed).sample(range(1, of + 1), min(number, of)))


def tree(folder: Path) -> dict[str, bytes]:
    """Every file and empty folder below, hidden ones too, but for locks, which hold nothing."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else b""
        for path in sorted(folder.rglob("*"))
        if not path.name.endswith(".lock") and (path.is_file() or not any(path.iterdir()))
    }
