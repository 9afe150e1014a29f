"""Work in a process of its own, which takes its memory with it when it ends."""

from __future__ import annotations

from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from engines.errors import UserError

Result = TypeVar("Result")


def apart(
    function: Callable[..., Result],
    *args: Any,
    progress: Callable[..., None] | None = None,
    **kwargs: Any,
) -> Result:
    """`function(*args, **kwargs)` in a fresh process: what it returns or raises.

    function: one that a module defines. It gets `progress`, where there is one, to call with plain values.
    Raises UserError too when the process dies.
    """
    context = get_context("spawn")
    pipe, theirs = context.Pipe(duplex=False)
    process = context.Process(
        target=_run, args=(theirs, function, args, kwargs, progress is not None), daemon=True
    )
    process.start()
    theirs.close()
    try:
        while True:
            try:
                kind, value = pipe.recv()
            except (EOFError, ConnectionError):
                process.join()
                raise UserError(
                    f"{function.__module__}: its process ended with code {process.exitcode}, "
                    "likely out of memory; close other programs or ask for less"
                ) from None
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


def _run(
    pipe: Connection,
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    reporting: bool,
) -> None:
    if reporting:
        kwargs["progress"] = lambda *step: pipe.send(("step", step))
    try:
        outcome = ("returned", function(*args, **kwargs))
    except Exception as error:
        outcome = ("raised", error)
    except KeyboardInterrupt:  # the terminal interrupts both; the parent says so
        return
    pipe.send(outcome)
