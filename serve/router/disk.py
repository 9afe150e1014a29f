"""Writes that are whole or not there at all; folders that one process has at a time."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Literal

from engines.errors import UserError


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


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """This process has the folder, made when it is not there, until the block ends or the process does.

    Raises UserError where another has it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UserError(f"{folder} is a file: expected a folder for the router's state") from None
    with ExitStack() as held:
        try:
            file = held.enter_context((folder / "lock").open("w"))
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{folder} is the state of a router that runs: stop that one, or give this one a --state"
            ) from None
        except OSError:  # read-only, where nothing can be spoilt, or a file system without locks
            pass
        yield
