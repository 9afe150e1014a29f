"""`python -m serve up` as its users start it: arms and a router, as processes on loopback."""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.conftest import ROOT

PATIENCE_S = 120


@contextmanager
def running_up(
    folder: Path, port: int, *what: str
) -> Iterator[tuple[subprocess.Popen[str], queue.Queue[str]]]:
    """The process and what it says, line by line; its state and log lie in `folder`."""
    where = [f"--port={port}", "--admin-port=0", f"--state={folder}/state", f"--log={folder}/log"]
    process = subprocess.Popen(
        [sys.executable, "-m", "serve", "up", *where, *what],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    said: queue.Queue[str] = queue.Queue()
    reader = threading.Thread(target=lambda: [said.put(line) for line in process.stderr or ()])
    reader.start()
    try:
        yield process, said
    finally:
        process.terminate()
        process.wait(60)
        reader.join()
        assert process.stderr
        process.stderr.close()


def wait_for(said: queue.Queue[str], beginning: str) -> str:
    """The first line that begins so; those before it are gone."""
    while not (line := said.get(timeout=PATIENCE_S)).startswith(beginning):
        pass
    return line
