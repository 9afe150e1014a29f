"""A port that cannot be had, in one line."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from engines.errors import UserError


@contextmanager
def listening(host: str, port: int, option: str = "--port") -> Iterator[None]:
    """Around what opens a port: UserError, which names the option that may give another."""
    try:
        yield
    except (OSError, OverflowError) as error:
        why: object = error
        if isinstance(error, OSError):
            # asyncio's text repeats the address; a name that is not found has no number.
            why = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror or error
        raise UserError(
            f"cannot listen on {host}:{port}: {why}; name another {option}, or 0 for a free one"
        ) from None
