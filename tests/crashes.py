"""Processes that are killed (SIGKILL) at a chosen moment: at the n-th change they make to files below a folder.

Moments are counted by Python's audit events, which come before the change. A file that is opened for writing
has two: nothing of it there yet, and its beginning there, as a cut-off write leaves it.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.truncate", "os.chmod"}
WRITING = os.O_WRONLY | os.O_RDWR


def die_at(moment: int, root: Path) -> Callable[[], None]:
    """Kills this process at that moment, counted from now on. Returns what counts one more by hand, for what
    is not a file's."""
    inside, now = f"{root.resolve()}{os.sep}", 0

    def count(cut: Callable[[], None] = lambda: None) -> None:
        nonlocal now
        now += 1
        if now == moment:
            cut()
            os.kill(os.getpid(), signal.SIGKILL)

    def hook(event: str, details: tuple[Any, ...]) -> None:
        if now >= moment or event not in {"open", *CHANGES}:
            return
        path = details[0]
        if not isinstance(path, str | bytes | os.PathLike):  # a descriptor's: it was seen when it was opened
            return
        # A name relative to a folder's descriptor is shutil.rmtree's.
        where = os.path.abspath(os.fsdecode(path))
        if not where.startswith(inside) and not (event in CHANGES and isinstance(details[-1], int)):
            return
        if event in CHANGES:
            count()
        elif details[2] & WRITING:
            count()
            count(lambda: _begin(where, details[2]))

    sys.addaudithook(hook)
    return count


def _begin(path: str, flags: int) -> None:
    try:
        file = os.open(path, flags, 0o644)
    except OSError:
        return
    if flags & (os.O_TRUNC | os.O_APPEND):
        os.write(file, b"{")


def killed(moment: int, root: Path, function: Callable[..., Any], *arguments: Any) -> bool:
    """Calls a module's function in a process of its own; whether it was killed before it was done."""
    context = multiprocessing.get_context("forkserver")  # forked from one that has nothing but the modules
    context.set_forkserver_preload([function.__module__])
    process = context.Process(target=_call, args=(moment, root, function, arguments))
    process.start()
    process.join(60)
    assert process.exitcode in (0, -signal.SIGKILL), process.exitcode
    return process.exitcode != 0


def _call(moment: int, root: Path, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    die_at(moment, root)
    function(*arguments)


def tree(folder: Path) -> dict[str, bytes]:
    """Every file and empty folder below, hidden ones too, but for locks, which hold nothing."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else b""
        for path in sorted(folder.rglob("*"))
        if not path.name.endswith(".lock") and (path.is_file() or not any(path.iterdir()))
    }
