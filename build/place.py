"""Where the work of a build is done: on this machine, unless it is told to use another's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from build.stages import Step
from build.store import Entry, Store
from engines.device import find_gpu


class Place(Protocol):
    """This machine, a cluster, or in a plan nothing but a list of what would be done.

    targets: the GPUs it has, by compute capability. Work for one of them is done where that GPU is.
    """

    @property
    def targets(self) -> frozenset[str]: ...

    def do(self, stage: Callable[..., Step], *arguments: Any, target: str | None = None) -> Entry:
        """Does a stage unless it is in the store. What comes back may only be passed on, until `wait`."""

    def wait(self, entry: Entry) -> Entry:
        """The same, finished."""

    def call(self, function: Callable[..., Any], *arguments: Any, target: str | None = None) -> Any:
        """What the function returns; nothing is kept."""


class Here:
    """This machine, one stage after the other."""

    def __init__(self, store: Store) -> None:
        gpu = find_gpu()
        self.store = store
        self.targets = frozenset({gpu.architecture} if gpu else ())

    def do(self, stage: Callable[..., Step], *arguments: Any, target: str | None = None) -> Entry:
        return self.store.do(*stage(*arguments))

    def wait(self, entry: Entry) -> Entry:
        return entry

    def call(self, function: Callable[..., Any], *arguments: Any, target: str | None = None) -> Any:
        return function(*arguments)
