"""Work in a process of its own, which takes its memory with it when it ends."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib import import_module
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from engines.errors import UserError, reason
from engines.lifetime import end_with

Result = TypeVar("Result")


def apart(
    function: Callable[..., Result],
    *args: Any,
    progress: Callable[..., None] | None = None,
    **kwargs: Any,
) -> Result:
    """`function(*args, **kwargs)` in a fresh process: what it returns or raises.

    function: one that a module defines. It gets `progress`, where there is one, to call with plain values.
    Raises UserError too when the process dies. When this one dies, that one does.
    """
    context = get_context("spawn")
    pipe, theirs = context.Pipe(duplex=False)
    named = (function.__module__, function.__qualname__)
    process = context.Process(
        target=_run, args=(os.getpid(), theirs, named, args, kwargs, progress is not None), daemon=True
    )
    process.start()
    theirs.close()
    try:
        while True:
            try:
                kind, value = pipe.recv()
            except (EOFError, ConnectionError):
                process.join()
                raise died(function.__module__, process.exitcode or 0) from None
            if kind == "returned":
                result: Result = value
                return result
            if kind == "raised":
                raise value
            assert progress is not None
            progress(*value)
    finally:
        pipe.close()
        process.terminate()
        process.join()


def died(what: str, code: int) -> UserError:
    """What is said of a process that left no word; code: as `Process.exitcode` has it."""
    if code >= 0:
        return UserError(f"{what}: its process ended with code {code}, without a word")
    return UserError(
        f"{what}: its process was killed (signal {-code}), most likely as memory ran out: close other "
        "programs, raise the container's limit, or ask for less"
    )


def _run(
    parent: int,
    pipe: Connection,
    named: tuple[str, str],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    reporting: bool,
) -> None:
    end_with(parent)
    if reporting:
        kwargs["progress"] = lambda *step: pipe.send(("step", step))
    try:
        function = getattr(import_module(named[0]), named[1])  # which may take more memory than there is
        outcome = ("returned", function(*args, **kwargs))
    except Exception as error:
        told = reason(error)
        outcome = ("raised", UserError(told) if told else error)
    except KeyboardInterrupt:  # the terminal interrupts both; the parent says so
        return
    pipe.send(outcome)
