"""The log: one JSON line for each request, in OpenTelemetry's names, written by a thread of its own.

Names of gen_ai.*, feature_flag.*, http.* and client.* are OpenTelemetry's conventions; ab.* are ours.
The data path only appends to a list: a slow or full disk costs lines, which are counted, and never a request.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

from pydantic_core import to_json

from serve.router.record import Record

FLUSH_S = 0.2
MOST_WAITING = 50_000  # lines; about 40 MB


class Log:
    """Writes to a file, rotated by size, and to stdout, as asked. `dropped` counts lines that were lost."""

    def __init__(
        self, path: Path | None, *, stdout: bool = False, rotate_bytes: int = 100_000_000, keep: int = 5
    ) -> None:
        self.dropped = 0
        self._path = path
        self._stdout = stdout
        self._rotate_bytes = rotate_bytes
        self._keep = keep
        self._offset = time.time() - time.monotonic()
        self._waiting: deque[bytes] = deque()  # appended to by one thread, taken from by the other
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="router-log", daemon=True)
        self._thread.start()

    def write(self, record: Record) -> None:
        """Takes a record; returns at once."""
        if len(self._waiting) < MOST_WAITING:
            self._waiting.append(to_json(line(record, self._offset)) + b"\n")
        else:
            self.dropped += 1

    def close(self) -> None:
        """Writes what waits and ends the thread."""
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping.wait(FLUSH_S):
            self._flush()
        self._flush()

    def _flush(self) -> None:
        lines = [self._waiting.popleft() for _ in range(len(self._waiting))]
        if not lines:
            return
        try:
            if self._stdout:
                sys.stdout.buffer.write(b"".join(lines))
                sys.stdout.buffer.flush()
            if self._path:
                self._append(self._path, lines)
        except OSError:
            self.dropped += len(lines)

    def _append(self, path: Path, lines: list[bytes]) -> None:
        if path.is_file() and path.stat().st_size >= self._rotate_bytes:
            for number in range(self._keep - 1, 0, -1):
                older = path.with_name(f"{path.name}.{number}")
                if older.is_file():
                    older.replace(path.with_name(f"{path.name}.{number + 1}"))
            path.replace(path.with_name(f"{path.name}.1"))
        with path.open("ab") as file:
            end = file.tell()
            try:
                file.write(b"".join(lines))
                file.flush()
            except OSError:
                file.truncate(end)  # half a line would spoil the next one
                raise


def line(record: Record, offset: float) -> dict[str, Any]:
    """A record under its public names, without what is not known. `offset` makes its times Unix time."""
    started = record.started + offset
    path, _, _ = record.target.partition(b"?")
    fields = {
        "timestamp": f"{_second(int(started))}.{int(started % 1 * 1000):03d}Z",
        "client.address": record.address,
        "http.request.method": record.method.decode("latin-1") or None,
        "url.path": path.decode("latin-1") or None,
        "http.response.status_code": record.status,
        "error.type": record.error,
        "feature_flag.key": record.experiment,
        "feature_flag.result.variant": record.assigned,
        "feature_flag.result.reason": record.reason,
        "feature_flag.context.id": pseudonym(record.key, record.experiment) if record.key else None,
        "feature_flag.version": str(record.version),
        "gen_ai.request.model": _text(record.request_model),
        "gen_ai.response.model": _text(record.response_model),
        "gen_ai.response.id": _text(record.response_id),
        "gen_ai.response.finish_reasons": [_text(record.finish_reason)] if record.finish_reason else None,
        "gen_ai.response.time_to_first_chunk": _round(record.ttft),
        "gen_ai.usage.input_tokens": record.input_tokens,
        "gen_ai.usage.output_tokens": record.output_tokens,
        "ab.arm": record.served,
        "ab.artifact_digest": record.digest,
        "ab.attempts": record.attempts,
        "ab.fallback": record.fallback,
        "ab.mirror": record.mirror or None,
        "ab.ttft_ms": _milliseconds(record.ttft),
        "ab.itl_ms": _milliseconds(record.itl),
        "ab.e2e_latency_ms": _milliseconds(record.e2e),
    }
    return {name: value for name, value in fields.items() if value is not None}


@lru_cache(maxsize=16)
def _second(second: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))


@lru_cache(maxsize=10_000)
def pseudonym(key: bytes, experiment: str) -> str:
    """What stands for a user in the log: the same within an experiment, not the same across them."""
    return blake2b(key, digest_size=12, key=experiment.encode()).hexdigest()


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode("utf-8", "replace")


def _round(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 6)


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 3)
