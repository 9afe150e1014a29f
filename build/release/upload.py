"""Blobs to a registry: in parallel, in chunks, going on where an interrupted upload stopped.

What another repository of the same registry has is mounted from there, not sent (distribution spec, end-11).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Lock

import httpx2

from build.release.registry import TRIES, Registry
from engines.artifact import write_json
from engines.errors import UserError

CHUNK = 32 << 20  # bytes that a lost connection costs at most
PARALLEL = 4
OCTETS = {"content-type": "application/octet-stream"}
Source = Path | bytes
Report = Callable[[str, int], None]  # of a blob, by digest, how many bytes are there by now


class Sessions:
    """Upload sessions that are open, by the blob's address, in a file: another run may go on with them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock = Lock()
        try:
            self.urls: dict[str, str] = json.loads(path.read_bytes())
        except (OSError, ValueError):
            self.urls = {}

    def keep(self, blob: str, url: str | None) -> None:
        """Remembers a session, or with None forgets it; where the folder cannot be written none is kept."""
        with self.lock, suppress(OSError):
            self.urls.pop(blob, None)
            if url:
                self.urls[blob] = url
            if self.urls:
                write_json(self.path, self.urls)
            else:
                self.path.unlink(missing_ok=True)


class _LostError(Exception):
    """A session that has ended early; it may be gone on with, or begun again."""


def upload_blobs(
    registry: Registry,
    blobs: Mapping[str, Source],
    sessions: Sessions,
    report: Report,
    chunk: int = CHUNK,
    siblings: Sequence[str] = (),
) -> int:
    """Uploads each blob, by digest, that neither the repository nor a sibling has; returns the bytes sent."""
    with ThreadPoolExecutor(PARALLEL) as pool:
        tasks = [
            pool.submit(upload_blob, registry, digest, source, sessions, report, chunk, siblings)
            for digest, source in blobs.items()
        ]
        try:
            return sum(task.result() for task in tasks)
        finally:
            for task in tasks:
                task.cancel()


def upload_blob(
    registry: Registry,
    digest: str,
    source: Source,
    sessions: Sessions,
    report: Report = lambda digest, done: None,
    chunk: int = CHUNK,
    siblings: Sequence[str] = (),
) -> int:
    """One blob; returns the bytes sent, 0 when the registry has it. The registry checks the digest."""
    size = len(source) if isinstance(source, bytes) else source.stat().st_size
    sent, blob = 0, registry.url(f"blobs/{digest}")
    for attempt in range(TRIES):
        if registry.has_blob(digest):
            break
        url, offset = _resume(registry, sessions.urls.get(blob))
        url = url or _start(registry, digest, siblings)
        if url is None:
            break
        try:
            while size - offset > chunk:
                report(digest, offset)
                url = _patch(registry, url, _read(source, offset, chunk), offset)
                sessions.keep(blob, url)
                offset, sent = offset + chunk, sent + chunk
            report(digest, offset)
            _finish(registry, url, digest, _read(source, offset, chunk))
            sent += size - offset
            break
        except (_LostError, httpx2.TransportError) as error:
            if attempt == TRIES - 1:
                lost = f"{_name(source)}: lost at {offset:,} of {size:,} bytes ({error})"
                raise UserError(f"{registry.reference.host}: {lost}; run it again to go on") from None
            registry.pause(2.0**attempt)
    sessions.keep(blob, None)
    report(digest, size)
    return sent


def _start(registry: Registry, digest: str, siblings: Sequence[str]) -> str | None:
    """A new session's address; None when the blob could be mounted from a sibling instead."""
    source = next((name for name in siblings if registry.has_blob_in(name, digest)), None)
    asked = {"mount": digest, "from": source} if source else {}
    response = registry.ask("POST", registry.url("blobs/uploads/"), 201, 202, params=asked, content=b"")
    return None if response.status_code == 201 else _location(response)


def _resume(registry: Registry, url: str | None) -> tuple[str | None, int]:
    """An open session's address and how much it has; none when the registry has given it up."""
    if url is None:
        return None, 0
    response = registry.retry(lambda: registry.client.get(url))
    if response.status_code not in (200, 204):
        return None, 0
    # `Range: 0-N` names the last byte; `0-0` is what registries say of an empty session.
    last = int(response.headers.get("range", "0-0").rpartition("-")[2])
    return _location(response), last + 1 if last else 0


def _patch(registry: Registry, url: str, data: bytes, offset: int) -> str:
    """Adds a chunk; the session's next address."""
    headers = {**OCTETS, "content-range": f"{offset}-{offset + len(data) - 1}"}
    response = registry.client.patch(url, content=data, headers=headers)
    _check(registry, response, 202)
    return _location(response)


def _finish(registry: Registry, url: str, digest: str, data: bytes) -> None:
    address = httpx2.URL(url).copy_merge_params({"digest": digest})
    response = registry.client.put(address, content=data, headers=OCTETS)
    _check(registry, response, 201)


def _check(registry: Registry, response: httpx2.Response, expected: int) -> None:
    """A session that is out of step or forgotten is lost; anything else unexpected is the user's to see."""
    code = response.status_code
    if code == expected:
        return
    if code in (404, 416, 429) or code >= 500:
        raise _LostError(f"the registry answered {code}")
    raise UserError(registry.complaint(response.request.method, str(response.url), response))


def _location(response: httpx2.Response) -> str:
    return str(response.url.join(response.headers["location"]))


def _read(source: Source, offset: int, count: int) -> bytes:
    if isinstance(source, bytes):
        return source[offset : offset + count]
    with source.open("rb") as file:
        file.seek(offset)
        return file.read(count)


def _name(source: Source) -> str:
    return source.name if isinstance(source, Path) else "a document"
