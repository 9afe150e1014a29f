"""Blobs from a registry: in parallel, going on where an interrupted download stopped, hashed before use."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2

from build.release.registry import TRIES, Registry
from engines.artifact import hash_file
from engines.errors import UserError

PARALLEL = 4
PIECE = 1 << 20
Report = Callable[[str, int], None]


def download_blobs(
    registry: Registry, blobs: Mapping[str, tuple[str, int]], folder: Path, report: Report
) -> None:
    """Puts each blob, by digest with its file's name and size, at `folder`/<hex>; whole and with its hash, or
    a UserError names the file. What was downloaded stays for the next run, unless its hash is wrong."""
    folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(PARALLEL) as pool:
        tasks = [
            pool.submit(download_blob, registry, digest, name, size, folder, report)
            for digest, (name, size) in blobs.items()
        ]
        try:
            for task in tasks:
                task.result()
        finally:
            for task in tasks:
                task.cancel()


def download_blob(
    registry: Registry, digest: str, name: str, size: int, folder: Path, report: Report
) -> Path:
    target = folder / digest.removeprefix("sha256:")
    if target.is_file() and hash_file(target).sha256 == target.name:  # of an earlier run
        report(digest, size)
        return target
    partial = target.with_suffix(".part")
    resumed = partial.is_file()
    for attempt in range(TRIES):
        try:
            _fetch(registry, digest, name, size, partial, report)
        except httpx2.TransportError as error:
            reason = str(error) or type(error).__name__
        else:
            reason = "the registry sent less"
        have = partial.stat().st_size if partial.is_file() else 0
        if have >= size:
            break
        if attempt == TRIES - 1:
            raise UserError(
                f"{name}: truncated at {have:,} of {size:,} bytes ({reason}); nothing was installed, "
                "run it again to go on"
            )
        registry.pause(2.0**attempt)
    if partial.stat().st_size != size or f"sha256:{hash_file(partial).sha256}" != digest:
        partial.unlink()
        if resumed:  # it may be what an earlier run left that is damaged: once more, from the beginning
            return download_blob(registry, digest, name, size, folder, report)
        raise UserError(
            f"{name}: what the registry sent is not what its digest says ({digest[:19]}…): tampered with or "
            "damaged; nothing was installed"
        )
    partial.replace(target)
    return target


def _fetch(registry: Registry, digest: str, name: str, size: int, partial: Path, report: Report) -> None:
    """Adds what is missing to `partial`, as far as the connection lasts."""
    have = partial.stat().st_size if partial.is_file() else 0
    headers = {"accept-encoding": "identity"}
    headers |= {"range": f"bytes={have}-"} if 0 < have < size else {}
    with registry.client.stream("GET", registry.url(f"blobs/{digest}"), headers=headers) as response:
        if response.status_code == 404:
            raise UserError(f"{name}: the registry has lost {digest[:19]}…; publish it again")
        if response.status_code not in (200, 206):
            response.read()
            raise UserError(registry.complaint("GET", str(response.url), response))
        with partial.open("ab" if response.status_code == 206 else "wb") as file:
            for piece in response.iter_raw(PIECE):
                file.write(piece)
                report(digest, file.tell())
                if file.tell() > size:
                    return
