"""Finished work at an fsspec URL (`s3://bucket/prefix`, `gs://…`, a folder), in folders as in a store."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.artifact import MANIFEST, Manifest
from engines.errors import UserError


@dataclass(frozen=True)
class Files:
    """Every failure is a UserError."""

    url: str

    def read(self, folder: Path) -> bytes | None:
        with self._opened(folder) as (files, there), suppress(FileNotFoundError):
            return bytes(files.cat_file(f"{there}/{MANIFEST}"))
        return None

    def get(self, manifest: Manifest, folder: Path, target: Path) -> None:
        with self._opened(folder) as (files, there), suppress(FileNotFoundError):
            for name in manifest.files:
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                files.get_file(f"{there}/{name}", str(target / name))

    def put(self, manifest: Manifest, folder: Path) -> None:
        with self._opened(folder) as (files, there):
            for name in (*manifest.files, MANIFEST):
                place = f"{there}/{name}"
                files.makedirs(place.rpartition("/")[0], exist_ok=True)
                files.put_file(str(folder / name), place)

    @contextmanager
    def _opened(self, folder: Path) -> Iterator[tuple[Any, str]]:
        """The file system, and the work's place in it."""
        from fsspec.core import url_to_fs

        try:
            files, root = url_to_fs(self.url)
            yield files, f"{root.rstrip('/')}/{folder.parent.name}/{folder.name}"
        except Exception as error:  # the clients of object stores share no narrower base
            told = str(error).strip().partition("\n")[0] or type(error).__name__
            raise UserError(
                f"--store {self.url}: {told}; expected an fsspec URL that can be read and written here"
            ) from None
