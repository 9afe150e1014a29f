"""Finished work where other machines' stores find it: at an fsspec URL, or in an OCI registry.

What comes from there is hashed before it is put in place: work is there whole, or not at all.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Protocol

from pydantic import ValidationError

from build.release.reference import SCHEME
from build.shared_files import Files
from build.shared_layers import Layers
from engines.artifact import Manifest, damage


class Shelf(Protocol):
    """Where it is. `folder` is STORE/STAGE/NAME: STAGE/NAME is what the work is called there too."""

    def read(self, folder: Path) -> bytes | None:
        """Its manifest.json."""

    def get(self, manifest: Manifest, folder: Path, target: Path) -> None:
        """Its files into `target`, as far as they are there."""

    def put(self, manifest: Manifest, folder: Path) -> None:
        """All of it there, the manifest last."""


def read_manifest(url: str, folder: Path) -> Manifest | None:
    """Of the work, where it is finished at the URL."""
    found = _shelf(url).read(folder)
    try:
        return None if found is None else Manifest.model_validate_json(found)
    except ValidationError:
        return None


def fetch(url: str, folder: Path) -> bool:
    """Takes it from there; False, and nothing is changed, where it is not there or damaged."""
    manifest = read_manifest(url, folder)
    if manifest is None:
        return False
    partial = folder.with_name(f".{folder.name}.fetched")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        _shelf(url).get(manifest, folder, partial)
        manifest.write(partial)
        if damage(partial, manifest):
            return False
        shutil.rmtree(folder, ignore_errors=True)
        partial.replace(folder)
        return True
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def send(url: str, folder: Path) -> None:
    """Puts it there. Two that send the same work send the same files."""
    _shelf(url).put(Manifest.read(folder), folder)


def _shelf(url: str) -> Shelf:
    return Layers(url) if url.startswith(SCHEME) else Files(url)
