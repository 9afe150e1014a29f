"""An arm as its users start it: a process on loopback."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2

from engines.artifact import Manifest, hash_folder
from engines.checkpoint import Checkpoint
from engines.export import export
from engines.self_test import record
from tests.conftest import ROOT


def built(checkpoint: Path, out: Path) -> Path:
    """An ONNX artifact as `build all` publishes one."""
    export(Checkpoint.open(checkpoint), out)
    record(out)
    facts = {"name": out.name, "variant": out.name, "stage": "onnx", "stage_version": "1", "key": "k"}
    Manifest(**facts, files=hash_folder(out)).write(out)
    return out


@dataclass(frozen=True)
class LiveArm:
    """Its address, its process, and what it has said on stderr so far."""

    url: str
    process: subprocess.Popen[str]
    log: list[str]

    def metric(self, name: str) -> float:
        """What /metrics tells of it now."""
        lines = httpx2.get(f"{self.url}/metrics").text.splitlines()
        return float(next(line.split()[1] for line in lines if line.startswith(f"{name} ")))


@contextmanager
def live_arm(
    artifact: Path, *options: str, python: Sequence[str] = (), **environment: str
) -> Iterator[LiveArm]:
    """An arm that is ready, `python` given options of its own; killed unless it has ended by itself."""
    command = [
        sys.executable,
        *python,
        "-m",
        "serve",
        "arm",
        str(artifact),
        "--port=0",
        "--threads=1",
        *options,
    ]
    variables = os.environ | {"PYTHONUNBUFFERED": "1"} | environment
    process = subprocess.Popen(command, cwd=ROOT, env=variables, stderr=subprocess.PIPE, text=True)
    assert process.stderr
    log: list[str] = []
    for line in process.stderr:
        log.append(line.rstrip("\n"))
        if line.startswith("ready: "):
            break
    reader = threading.Thread(target=lambda: log.extend(line.rstrip("\n") for line in process.stderr or ()))
    reader.start()
    try:
        assert log, "the arm said nothing"
        assert log[-1].startswith("ready: "), "\n".join(log)
        yield LiveArm(log[-1].split(" at ")[1], process, log)
    finally:
        process.kill()
        process.wait()
        reader.join()
        process.stderr.close()
