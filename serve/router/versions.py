"""Versions of the policy on disk: each kept, each change a line in an append-only audit log.

    STATE/policies/000001.yaml    the text of version 1, as it was given
    STATE/audit.jsonl             one line a change; the last one says what is in force

A version's file is on disk before its line is: after a crash the last whole line holds.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

from engines.errors import UserError
from serve.router.disk import write_whole


@dataclass(frozen=True)
class Change:
    """A line of the audit log. `content` is the version whose text it has: its own, or one gone back to.

    `rollout` is the ramp's status from then on, where a rollout made the change: one line holds both, so a
    crash never parts them.
    """

    version: int
    content: int
    action: str  # file, put, rollback, or what a rollout did and why
    by: str  # an address, or `file`
    sha256: str
    time: str
    rollout: str = ""


class Versions:
    """The history in one folder. Nothing there is touched before the first change."""

    def __init__(self, folder: Path) -> None:
        self._policies = folder / "policies"
        self._audit = folder / "audit.jsonl"
        self.changes, self._cut = _read(self._audit)

    @property
    def last(self) -> Change | None:
        """What is in force, or None where nothing ever was."""
        return self.changes[-1] if self.changes else None

    def text(self, version: int) -> str:
        """The text of a version. Raises UserError where there is none."""
        for change in self.changes:
            if change.version == version:
                path = self._file(change.content)
                try:
                    content = path.read_bytes()
                except OSError as error:
                    raise UserError(f"the policy of version {version} cannot be read: {error}") from None
                if sha256(content).hexdigest() != change.sha256:
                    raise UserError(f"{path} is damaged: it is not the text that version {version} was")
                return content.decode()
        raise UserError(f"no version {version}; the last is {len(self.changes)}")

    def before(self) -> int:
        """The version a rollback goes back to: the one before the text in force first was."""
        if self.last is None or self.last.content == 1:
            raise UserError("there is no version before this one")
        return self.last.content - 1

    def put(self, text: str, action: str, by: str, rollout: str = "") -> Change:
        """Keeps a new text as the next version. Returns when it is on disk."""
        version = len(self.changes) + 1
        self._policies.mkdir(parents=True, exist_ok=True)
        temporary = self._file(version).with_suffix(".new")
        write_whole(temporary, text.encode(), "wb")
        temporary.replace(self._file(version))
        return self._append(version, version, action, by, text, rollout)

    def go_back(self, to: int, by: str) -> Change:
        """Keeps the text of an earlier version as the next one. Returns when it is on disk."""
        text = self.text(to)
        return self._append(len(self.changes) + 1, self.changes[to - 1].content, "rollback", by, text)

    def _append(
        self, version: int, content: int, action: str, by: str, text: str, rollout: str = ""
    ) -> Change:
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        change = Change(version, content, action, by, sha256(text.encode()).hexdigest(), now, rollout)
        if self._cut is not None:
            os.truncate(self._audit, self._cut)
            self._cut = None
        write_whole(self._audit, json.dumps(asdict(change)).encode() + b"\n", "ab")
        self.changes.append(change)
        return change

    def _file(self, version: int) -> Path:
        return self._policies / f"{version:06d}.yaml"


def _read(audit: Path) -> tuple[list[Change], int | None]:
    """The changes; and where a crash cut off one more, which never was in force, if it did."""
    if not audit.is_file():
        return [], None
    lines, cut = audit.read_bytes().splitlines(keepends=True), None
    if lines and not lines[-1].endswith(b"\n"):
        lines.pop()
        cut = sum(map(len, lines))
    try:
        return [Change(**json.loads(line)) for line in lines], cut
    except (ValueError, TypeError, RecursionError):
        raise UserError(f"{audit} is damaged: expected one change a line; move the folder away") from None


def read_texts(folder: Path) -> dict[int, str]:
    """The text of every version in a folder, which is not changed. Raises UserError where there are none."""
    if not (folder / "audit.jsonl").is_file():
        raise UserError(f"no versions in {folder}: expected the state of a router")
    versions = Versions(folder)
    return {change.version: versions.text(change.version) for change in versions.changes}
