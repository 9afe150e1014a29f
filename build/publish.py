"""A variant that passed becomes ``<out>/<model>/<variant>/``: its files, its manifest, and the evidence.

Files are hard links into the store. The folder is exchanged for the older one in one step, so a reader always
sees one of the two, and a crash leaves one of the two.
"""

from __future__ import annotations

import ctypes
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from build.source import project_revision
from build.store import Entry, link_or_copy
from engines.artifact import MANIFEST, Manifest, damage, hash_folder, write_json
from engines.errors import UserError

EVIDENCE = "evidence"
FROM_HERE, EXCHANGE = -100, 2  # AT_FDCWD of fcntl.h, RENAME_EXCHANGE of linux/fs.h


def publish(
    artifact: Entry,
    evidence: Mapping[str, Path | str | dict[str, Any]],
    requires: dict[str, Any],
    target: Path,
) -> Manifest:
    """Puts ``artifact`` with its evidence (files, texts or JSON documents by name) at ``target``."""
    with replaced(target) as fresh:
        for name in artifact.manifest.files:
            link_or_copy(artifact.path / name, fresh / name)
        folder = fresh / EVIDENCE
        folder.mkdir()
        for name, content in evidence.items():
            if isinstance(content, Path):
                link_or_copy(content, folder / name)
            elif isinstance(content, str):
                (folder / name).write_text(content)
            else:
                write_json(folder / name, content)
        hashes = {f"{EVIDENCE}/{name}": file for name, file in hash_folder(folder, skip=frozenset()).items()}
        source = {**artifact.manifest.source, **project_revision()}
        facts = {"evidence": hashes, "requires": requires, "source": source}
        manifest = artifact.manifest.model_copy(update=facts)
        manifest.write(fresh)
    return manifest


@contextmanager
def replaced(target: Path) -> Iterator[Path]:
    """A new folder to fill, which takes the place of `target` when the block ends without an error."""
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh, old = target.with_name(f".{target.name}.new"), target.with_name(f".{target.name}.old")
    with FileLock(target.with_name(f".{target.name}.lock")):
        _clear(target, fresh, old)
        fresh.mkdir()
        try:
            yield fresh
            if not target.exists():
                fresh.replace(target)
            elif not _exchange(fresh, target):
                target.replace(old)
                fresh.replace(target)
        finally:
            _clear(target, fresh, old)


def _clear(target: Path, fresh: Path, old: Path) -> None:
    """Removes what is not in place; where a crash between two renames left nothing, the older is put back."""
    if old.exists() and not target.exists():
        old.replace(target)
    for leftover in (fresh, old):
        shutil.rmtree(leftover, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Swaps two names in one step; False, with nothing done, where the system or the file system cannot."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    if rename is None:
        return False
    done: int = rename(FROM_HERE, os.fsencode(one), FROM_HERE, os.fsencode(other), EXCHANGE)
    return done == 0


@contextmanager
def beside(artifact: Path) -> Iterator[Path]:
    """An empty folder beside the artifact, gone when the block ends; meanwhile none replaces the artifact."""
    folder = artifact.with_name(f".{artifact.name}.release")
    with FileLock(artifact.with_name(f".{artifact.name}.lock")):
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def published(out: Path) -> list[Path]:
    """Every published folder below ``out``, in order."""
    return sorted(path.parent for path in out.glob(f"*/*/{MANIFEST}") if not path.parent.name.startswith("."))


def verify(folder: Path) -> list[str]:
    """What is wrong with a published folder, one line each."""
    try:
        return damage(folder, Manifest.read(folder))
    except UserError as error:
        return [str(error)]
