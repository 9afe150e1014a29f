"""Writes that are whole or not there at all."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path
from typing import Literal


def write_whole(path: Path, data: bytes, mode: Literal["wb", "ab"], *, durable: bool = True) -> None:
    """Writes or appends all of it; `durable` waits for the disk. After an OSError nothing is there."""
    with path.open(mode, buffering=0) as file:
        end = file.tell()
        try:
            if file.write(data) < len(data):  # as much as a full disk had room for
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            if durable:
                os.fsync(file.fileno())
        except OSError:
            with suppress(OSError):  # a device has no end
                file.truncate(end)  # half a line would spoil the next one
            raise
