"""Repositories that were published to from here: content of one is mounted in another, not sent again."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

from filelock import FileLock

from build.release.reference import Reference
from engines.artifact import write_json

MOST = 8  # of a registry; each is asked for every file that a new one lacks


class Siblings:
    """In a file beside the artifacts, by registry, the last first; where none can be kept, more is sent."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.repositories: dict[str, list[str]] = json.loads(path.read_bytes())
        except (OSError, ValueError):
            self.repositories = {}

    def of(self, reference: Reference) -> list[str]:
        """Other repositories of the same registry."""
        return [name for name in self.repositories.get(reference.host, []) if name != reference.repository]

    def remember(self, reference: Reference) -> None:
        """This one was published to."""
        with suppress(OSError), FileLock(self.path.with_suffix(".lock")):
            known = Siblings(self.path)  # by now; another variant may have been published meanwhile
            names = [reference.repository, *known.of(reference)][:MOST]
            write_json(self.path, known.repositories | {reference.host: names})
