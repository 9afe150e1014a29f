"""Finished work at an fsspec URL (`s3://bucket/prefix`, `gs://…`, a folder), for stores on different disks.

It has the same folders there as in a store. Its manifest is sent last, and what comes from there is hashed
before it is put in place: work is there whole, or not at all.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from engines.artifact import MANIFEST, Manifest, damage
from engines.errors import UserError


def has(url: str, folder: Path) -> bool:
    """Whether STAGE/NAME of `folder`, which is STORE/STAGE/NAME, is finished at the URL."""
    with _opened(url, folder) as (files, there):
        return bool(files.exists(f"{there}/{MANIFEST}"))


def fetch(url: str, folder: Path) -> bool:
    """Takes it from there; False, and nothing is changed, where it is not there or damaged."""
    partial = folder.with_name(f".{folder.name}.fetched")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        with _opened(url, folder) as (files, there):
            if not _copied(files, there, partial):
                return False
        shutil.rmtree(folder, ignore_errors=True)
        partial.replace(folder)
        return True
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _copied(files: Any, there: str, partial: Path) -> bool:
    try:
        files.get_file(f"{there}/{MANIFEST}", str(partial / MANIFEST))
        manifest = Manifest.read(partial)
        for name in manifest.files:
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            files.get_file(f"{there}/{name}", str(partial / name))
    except (FileNotFoundError, UserError):  # the latter of a manifest that cannot be read
        return False
    return not damage(partial, manifest)


def send(url: str, folder: Path) -> None:
    """Puts it there. Two that send the same work send the same files."""
    names = [*Manifest.read(folder).files, MANIFEST]
    with _opened(url, folder) as (files, there):
        for name in names:
            place = f"{there}/{name}"
            files.makedirs(place.rpartition("/")[0], exist_ok=True)
            files.put_file(str(folder / name), place)


@contextmanager
def _opened(url: str, folder: Path) -> Iterator[tuple[Any, str]]:
    """The file system, and the folder's place in it. UserError on whatever it says."""
    from fsspec.core import url_to_fs

    try:
        files, root = url_to_fs(url)
        yield files, f"{root.rstrip('/')}/{folder.parent.name}/{folder.name}"
    except UserError:
        raise
    except Exception as error:  # the clients of object stores share no narrower base
        told = str(error).strip().partition("\n")[0] or type(error).__name__
        raise UserError(
            f"--store {url}: {told}; expected an fsspec URL that can be read and written here"
        ) from None
