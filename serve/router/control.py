"""Changes of the policy while requests run: checked, kept on disk, then in force, one at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

from engines.errors import UserError
from serve.router.log import Log
from serve.router.reading import parse_policy
from serve.router.router import Router
from serve.router.versions import Change, Versions


class Control:
    """What the admin port and a signal may do. A refused change leaves everything as it was."""

    def __init__(self, router: Router, versions: Versions) -> None:
        self.router = router
        self.versions = versions
        self._one_at_a_time = asyncio.Lock()

    async def put(
        self, text: str, action: str, by: str, expected: int | None = None, rollout: str = ""
    ) -> Change:
        """A new policy. Raises UserError when refused, ConflictError when `expected` is not in force."""
        return await self._change(text, lambda: self.versions.put(text, action, by, rollout), expected)

    async def go_back(self, to: int | None, by: str) -> Change:
        """An earlier policy again, by default the one before. Raises UserError where there is none."""
        version = self.versions.before() if to is None else to
        return await self._change(
            self.versions.text(version), lambda: self.versions.go_back(version, by), None
        )

    async def _change(self, text: str, keep: Callable[[], Change], expected: int | None) -> Change:
        async with self._one_at_a_time:
            current = self.router.live.version
            if expected is not None and expected != current:
                raise ConflictError(
                    f"version {current} is in force, not {expected}; read it and decide again"
                )
            live = self.router.prepare(parse_policy(text), current + 1)
            change = await asyncio.to_thread(keep)
            self.router.switch(live)
            return change


class ConflictError(UserError):
    """Someone else changed the policy in between."""


def open_router(file: Path, versions: Versions, log: Log, warn: Callable[[str], None]) -> Router:
    """The router under the policy last in force, or under the file's if that is new or was edited since.

    Raises UserError when there is no usable policy at all; a broken file beside a history is only warned of.
    """
    last = versions.last
    try:
        text = file.read_text()
        read = [change.sha256 for change in versions.changes if change.action == "file"]
        if not read or read[-1] != sha256(text.encode()).hexdigest():
            router = Router(parse_policy(text, file.name), len(versions.changes) + 1, log)
            versions.put(text, "file", "file")
            return router
    except (OSError, UnicodeDecodeError, UserError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        told = str(error) if isinstance(error, UserError) else f"cannot read {file}: {why}"
        if last is None:
            raise UserError(told) from None
        warn(f"{told}; version {last.version} stays in force")
    assert last
    return Router(parse_policy(versions.text(last.version)), last.version, log)
