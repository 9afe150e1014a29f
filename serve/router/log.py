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

from engines.errors import UserError
from serve.router.disk import write_whole
from serve.router.record import REQUEST_ID, Record

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
        self._waiting: deque[bytes] = deque()  # appended to by one thread, taken from by the other
        self._stopping = threading.Event()
        self._failing = False
        if path:
            _try(path)
        self._thread = threading.Thread(target=self._run, name="router-log", daemon=True)
        self._thread.start()

    def write(self, record: Record) -> None:
        """Takes a record; returns at once."""
        if len(self._waiting) < MOST_WAITING:
            self._waiting.append(to_json(line(record, clock_offset())) + b"\n")
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
        except OSError as error:
            self.dropped += len(lines)
            if not self._failing:
                _tell(f"the log cannot be written: {error.strerror}; lines are lost, requests are not")
            self._failing = True
        else:
            if self._failing:
                _tell(f"the log is written again; {self.dropped} lines were lost since the start")
            self._failing = False

    def _append(self, path: Path, lines: list[bytes]) -> None:
        if path.is_file() and path.stat().st_size >= self._rotate_bytes:
            for number in range(self._keep - 1, 0, -1):
                older = path.with_name(f"{path.name}.{number}")
                if older.is_file():
                    older.replace(path.with_name(f"{path.name}.{number + 1}"))
            path.replace(path.with_name(f"{path.name}.1"))
        write_whole(path, b"".join(lines), "ab", durable=False)


def _try(path: Path) -> None:
    try:
        path.open("ab").close()
    except OSError as error:
        raise UserError(f"the log {path} cannot be opened: {error.strerror}") from None


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def clock_offset() -> float:
    """Of Unix time, as it is now: the clock may be set while the router runs."""
    return time.time() - time.monotonic()


def line(record: Record, offset: float) -> dict[str, Any]:
    """A record under its public names, without what is not known. `offset` makes its times Unix time."""
    started = record.started + offset
    second = int(started)
    fields: dict[str, Any] = {
        "timestamp": f"{_second(second)}.{int((started - second) * 1000):03d}Z",
        "client.address": record.address,
        "http.response.status_code": record.status,
        "feature_flag.key": record.experiment,
        "feature_flag.version": str(record.version),
        "ab.attempts": record.attempts,
        "ab.e2e_latency_ms": _milliseconds(record.e2e),
    }
    if record.method:
        fields["http.request.method"] = record.method.decode("latin-1")
        fields["url.path"] = record.target.partition(b"?")[0].decode("latin-1")
    if REQUEST_ID.fullmatch(record.request_id):
        fields["http.request.header.x-request-id"] = [record.request_id.decode()]
    if record.assigned:
        fields["feature_flag.result.variant"] = record.assigned
        fields["feature_flag.result.reason"] = record.reason
    if record.key:
        fields["feature_flag.context.id"] = pseudonym(record.key, record.experiment)
    if record.served:
        fields["ab.arm"] = record.served
    if record.digest:
        fields["ab.artifact_digest"] = record.digest
    if record.error:
        fields["error.type"] = record.error
    if record.fallback:
        fields["ab.fallback"] = record.fallback
    if record.mirror:
        fields["ab.mirror"] = True
    if record.request_model:
        fields["gen_ai.request.model"] = _text(record.request_model)
    if record.response_model:
        fields["gen_ai.response.model"] = _text(record.response_model)
    if record.response_id:
        fields["gen_ai.response.id"] = _text(record.response_id)
    if record.finish_reason:
        fields["gen_ai.response.finish_reasons"] = [_text(record.finish_reason)]
    if record.output_tokens is not None:
        fields["gen_ai.usage.output_tokens"] = record.output_tokens
    if record.input_tokens is not None:
        fields["gen_ai.usage.input_tokens"] = record.input_tokens
    if (ttft := record.ttft) is not None:
        fields["ab.ttft_ms"] = milliseconds = _milliseconds(ttft)
        fields["gen_ai.response.time_to_first_chunk"] = milliseconds / 1000
    if (itl := record.itl) is not None:
        fields["ab.itl_ms"] = _milliseconds(itl)
    return fields


@lru_cache(maxsize=16)
def _second(second: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))


@lru_cache(maxsize=10_000)
def pseudonym(key: bytes, experiment: str) -> str:
    """What stands for a user in the log: the same within an experiment, not the same across them."""
    return blake2b(key, digest_size=12, key=experiment.encode()).hexdigest()


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")


def _milliseconds(seconds: float) -> float:
    return int(seconds * 1e6) / 1000  # round() would take ten times as long
