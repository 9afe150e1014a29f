"""A content-addressed store: each piece of work is done once, whole, and never trusted unread.

``<root>/<stage>/<name>-<key>/`` holds what one piece of work made, with ``manifest.json`` written last. The
key is the sha256 of all the result depends on, so a hit is the same work, and a miss can say what changed.
"""

from __future__ import annotations

import functools
import platform
import shutil
import socket
import stat
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from build import shared
from build.code import code_version
from engines.artifact import MANIFEST, Manifest, canonical_digest, damage, hash_folder
from engines.errors import UserError

# Makes the folder `out`, may keep state in `scratch`, returns further fields of the manifest.
Run = Callable[[Path, Path], dict[str, Any]]


@dataclass(frozen=True)
class Work:
    """One piece of work and all it depends on: its function in the project, packages of others."""

    stage: str
    name: str
    config: Mapping[str, Any]
    inputs: Mapping[str, str]
    code: Callable[..., Any]
    packages: tuple[str, ...]
    variant: str | None = None
    measures: bool = (
        False  # a measurement belongs to the processor that made it, a conversion to its architecture
    )

    @functools.cached_property
    def stage_version(self) -> str:
        return code_version(self.code)

    @functools.cached_property
    def toolchain(self) -> dict[str, str]:
        tools = {package: version(package) for package in sorted(self.packages)}
        tools["python"] = ".".join(map(str, sys.version_info[:2]))
        tools["device"] = processor_name() if self.measures else platform.machine()
        return tools

    @functools.cached_property
    def key(self) -> str:
        return canonical_digest(
            {
                "stage": self.stage,
                "name": self.name,
                "version": self.stage_version,
                "config": self.config,
                "inputs": self.inputs,
                "toolchain": self.toolchain,
            }
        )


@dataclass(frozen=True)
class Entry:
    """A finished piece of work in the store."""

    path: Path
    manifest: Manifest
    cached: bool
    reason: str

    @functools.cached_property
    def digest(self) -> str:
        return self.manifest.digest


@dataclass
class Store:
    """Folders keyed by work. ``say`` gets one line for each thing worth telling.

    ``url``: where other machines' stores find what is done here, and this one what is done there.
    """

    root: Path
    say: Callable[[str], None] = field(default=lambda line: None)
    url: str | None = None

    def folder(self, work: Work) -> Path:
        return self.root / work.stage / f"{work.name}-{work.key.removeprefix('sha256:')[:16]}"

    def find(self, work: Work) -> Entry | str:
        """The finished work, or in one line why it must be done."""
        folder = self.folder(work)
        if not (folder / MANIFEST).is_file():
            return self._why_missing(work)
        try:
            manifest = Manifest.read(folder)
        except UserError as error:
            return f"damaged: {error}"
        broken = damage(folder, manifest)
        return f"damaged: {broken[0]}" if broken else Entry(folder, manifest, cached=True, reason="cache hit")

    def do(self, work: Work, run: Run) -> Entry:
        """Returns the finished work, doing it first where it must be done. Safe beside other runs."""
        folder = self.folder(work)
        partial = folder.with_name(f".{folder.name}.partial")
        with self._alone(folder):
            found = self.find(work)
            if isinstance(found, str) and self._fetch(folder):
                found = Entry(folder, Manifest.read(folder), cached=True, reason=f"fetched from {self.url}")
            if isinstance(found, Entry):
                self.say(f"{work.stage} {work.name}: {found.reason}")
                _remove(partial)  # of a run that was killed when all but this was done
                if self.url and shared.read_manifest(self.url, folder) is None:
                    shared.send(self.url, folder)
                return found
            self.say(f"{work.stage} {work.name}: {found}")
            entry = self._run(work, run, folder, partial, reason=found)
            if self.url:
                shared.send(self.url, folder)
            return entry

    def bring(self, folder: Path) -> bool:
        """Whether work that another machine may have done is in this store, fetched where it must be."""
        if (folder / MANIFEST).is_file():
            return True
        with self._alone(folder):
            return (folder / MANIFEST).is_file() or self._fetch(folder)

    def _fetch(self, folder: Path) -> bool:
        if not self.url or not shared.fetch(self.url, folder):
            return False
        _make_read_only(folder)
        return True

    @contextmanager
    def _alone(self, folder: Path) -> Iterator[None]:
        """While no other run does the same work."""
        locks = self.root / "locks"
        locks.mkdir(parents=True, exist_ok=True)
        lock = FileLock(locks / f"{folder.parent.name}-{folder.name}.lock")
        try:
            lock.acquire(blocking=False)
        except Timeout:
            name = f"{folder.parent.name} {folder.name.rpartition('-')[0]}"
            self.say(f"{name}: another run is doing this, waiting for it")
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def _run(self, work: Work, run: Run, folder: Path, partial: Path, reason: str) -> Entry:
        out, scratch = partial / "out", partial / "scratch"
        _remove(out)
        scratch.mkdir(parents=True, exist_ok=True)
        began = time.monotonic()
        fields = run(out, scratch)
        manifest = Manifest(
            name=work.name,
            variant=work.variant,
            stage=work.stage,
            stage_version=work.stage_version,
            key=work.key,
            config=dict(work.config),
            inputs=dict(work.inputs),
            files=hash_folder(out),
            packages=work.toolchain,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            seconds=round(time.monotonic() - began, 3),
            host=socket.gethostname(),
            **fields,
        )
        _make_read_only(out)
        manifest.write(out)
        _remove(folder)
        out.replace(folder)
        _remove(partial)
        return Entry(folder, manifest, cached=False, reason=reason)

    def _why_missing(self, work: Work) -> str:
        """Compares with the newest finished work of the same stage and name."""
        finished: dict[float, Manifest] = {}
        for path in (self.root / work.stage).glob(f"{work.name}-{'?' * 16}/{MANIFEST}"):
            with suppress(UserError, OSError):  # damaged, or just being replaced: it explains nothing
                finished[path.stat().st_mtime] = Manifest.read(path.parent)
        if not finished:
            return "not built yet"
        return "rebuilt: " + "; ".join(_differences(finished[max(finished)], work) or ["its key changed"])


def _differences(old: Manifest, work: Work) -> list[str]:
    changes = []
    for role in sorted({*old.inputs, *work.inputs}):
        if old.inputs.get(role) != work.inputs.get(role):
            changes.append(f"input {role} changed")
    for name in sorted({*old.config, *work.config}):
        was, now = old.config.get(name), work.config.get(name)
        if was != now:
            changes.append(f"{name} {was!r} -> {now!r}")
    for tool in sorted({*old.packages, *work.toolchain}):
        was, now = old.packages.get(tool), work.toolchain.get(tool)
        if was != now:
            changes.append(f"{tool} {was} -> {now}")
    if old.stage_version != work.stage_version:
        changes.append("its code changed")
    return changes


@functools.cache
def processor_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The CPU's model name where the system tells it, else its architecture."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]}, {len(names)} cores" if names else platform.machine()


def link_or_copy(source: Path, target: Path) -> None:
    """A hard link, or a copy where the two are on different file systems."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)


def _make_read_only(folder: Path) -> None:
    """Published files are hard links to these: an edit in place would reach both."""
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(path.stat().st_mode & ~(stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH))


def _remove(path: Path) -> None:
    if path.exists():
        shutil.rmtree(path)
