"""A port that cannot be had, in one line."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from engines.errors import UserError


@contextmanager
def listening(host: str, port: int, option: str = "--port") -> Iterator[None]:
    """Around what opens a port: UserError, which names the option that may give another."""
    try:
        yield
    except (OSError, OverflowError) as error:
        named = isinstance(error, OSError) and error.errno and not isinstance(error, socket.gaierror)
        why = os.strerror(error.errno) if named else getattr(error, "strerror", None) or error
        raise UserError(
            f"cannot listen on {host}:{port}: {why}; name another {option}, or 0 for a free one"
        ) from None
