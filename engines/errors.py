"""The one error a user is meant to read; and what libraries say in their own ways: no memory, no package."""

from __future__ import annotations

import re
import sys

NO_MEMORY = re.compile(  # of the system, torch, onnxruntime and C++, the dynamic linker, Python's threads
    "(cannot|can't) allocate memory|bad_alloc|bad allocation|failed to map segment|can't start new thread",
    re.IGNORECASE,
)
OURS = ("build", "bench", "serve", "quantize", "engines")  # that one of these lacks a module is a bug
NOT_INSTALLED = (
    "{} is not installed for {}: expected .venv/bin/python, which `make setup` makes, or pip install -r "
    "requirements/build.txt (serve.txt is enough to serve, pull and select)"
)


class UserError(ValueError):
    """Bad input or environment. The message is one line: what was found, what was expected, what to do.

    Commands print it as ``error: <message>`` on stderr and exit 1; anything else that escapes is a bug. What
    it quotes may be anybody's: line breaks and the controls of a terminal are shown as their escapes.
    """

    def __init__(self, message: str) -> None:
        super().__init__(
            "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message)
        )


def reason(error: Exception) -> str | None:
    """In one line what is no bug: the message of a UserError, that memory ran out, or that a package is not
    installed. None for all else.
    """
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, ModuleNotFoundError):
        package = (error.name or "").partition(".")[0]
        return None if package in OURS else NOT_INSTALLED.format(package, sys.executable)
    if isinstance(error, MemoryError) or NO_MEMORY.search(str(error)):
        return "out of memory: close other programs, raise the limit (ulimit, a container's), or ask for less"
    return None
