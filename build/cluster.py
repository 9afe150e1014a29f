"""``build all --on ADDRESS``: the same stages as tasks of a Ray cluster, which says where and when.

Every node has the project and its packages under the same paths as this machine, and either the store too, or
a store of its own that shares finished work at a URL. One with a GPU tells which when it joins:
``ray start --labels gpu=sm89``.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from build import measuring, stages
from build.code import ROOT
from build.evidence import Built
from build.stages import Step
from build.store import Entry, Store
from engines.errors import UserError
from engines.units import human_size

LABEL = "gpu"
SHARED = "every node needs the checkout and --out under the same path, or the checkout and a --store URL"
LOCAL = (stages.checkpoint, measuring.items)  # take what lies on this machine into the store


@contextmanager
def connected(address: str, store: Store, memory: int) -> Iterator[Cluster]:
    """The cluster at `ray://HOST:PORT`, or what else `ray.init` takes. memory: bytes a task may need.

    Raises UserError where Ray is not installed or does not answer.
    """
    # Or a lost connection makes Ray start a cluster of its own here.
    os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"
    try:
        import ray
    except ImportError:
        raise UserError("--on needs Ray, which is not installed; do: pip install 'ray[client]'") from None
    path = os.pathsep.join((str(ROOT), "${PYTHONPATH}"))  # of the node's own what it has
    try:
        ray.init(address, runtime_env={"env_vars": {"PYTHONPATH": path}}, logging_level="error")
    except (ConnectionError, ValueError, RuntimeError) as error:
        told = _last_line(error)
        raise UserError(
            f"--on {address}: no Ray cluster there ({told}); start one: ray start --head"
        ) from None
    try:
        yield Cluster(ray, store, memory)
    finally:
        ray.shutdown()


class Cluster:
    """Each stage is a task, which begins when those are done whose results it gets."""

    def __init__(self, ray: Any, store: Store, memory: int) -> None:
        self._ray, self._store, self._memory = ray, store, memory
        self._nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) >= 1]
        with_gpu = [node["Labels"].get(LABEL) for node in self._nodes if node["Resources"].get("GPU")]
        self.targets = frozenset(label for label in with_gpu if label)

    def do(self, stage: Callable[..., Step], *arguments: Any, target: str | None = None) -> Entry:
        if stage in LOCAL:
            return self._store.do(*stage(*arguments))
        entry: Entry = self._start(stage.__name__, target, _staged, stage, *arguments)
        return entry

    def wait(self, entry: Entry) -> Entry:
        done: Entry = self._get(entry)
        _bring(self._store, done)
        return done

    def call(self, function: Callable[..., Any], *arguments: Any, target: str | None = None) -> Any:
        return self._get(self._start(function.__name__, target, _called, function, *arguments))

    def _start(self, name: str, target: str | None, function: Callable[..., Any], *arguments: Any) -> Any:
        """A task on a node with the target's GPU, or on any where no node has it.

        It takes every core of the smallest of these nodes: stages use all they find, and are measured alone.
        """
        selector, nodes = {}, self._nodes
        if target in self.targets:
            selector, nodes = {LABEL: target}, [node for node in nodes if node["Labels"].get(LABEL) == target]
        fit = [node["Resources"] for node in nodes if node["Resources"].get("memory", 0) >= self._memory]
        if not fit:
            most = human_size(int(max((node["Resources"].get("memory", 0) for node in nodes), default=0)))
            raise UserError(
                f"{name} may take {human_size(self._memory)} of memory, found at most {most} on "
                f"{len(nodes)} nodes; add a larger node, or tell Ray of more: ray start --memory BYTES"
            )
        options = {
            "name": name,
            "num_cpus": min(node["CPU"] for node in fit),
            "num_gpus": 1 if selector else 0,
            "memory": self._memory,
            "label_selector": selector,
        }
        task = self._ray.remote(_there).options(**options)
        return task.remote(str(Path.cwd()), self._store, function, *arguments)

    def _get(self, value: Any) -> Any:
        if isinstance(value, Entry):
            return value
        try:
            return self._ray.get(value)
        except self._ray.exceptions.RayTaskError as error:  # what the function itself raised
            raise error.cause from None
        except (self._ray.exceptions.RayError, ConnectionError) as error:
            told = _last_line(error)
            raise UserError(f"Ray lost a stage ({told}); the same command goes on from here") from None


def _there(folder: str, store: Store, function: Callable[..., Any], *arguments: Any) -> Any:
    """On a node, in the folder of the same name, with all that is passed on in its store."""
    try:
        os.chdir(folder)
    except OSError as error:
        raise UserError(f"{socket.gethostname()}: {folder}: {error.strerror}; {SHARED}") from None
    for argument in arguments:
        for entry in argument.entries() if isinstance(argument, Built) else [argument]:
            if isinstance(entry, Entry):
                _bring(store, entry)
    return function(store, *arguments)


def _staged(store: Store, stage: Callable[..., Step], *arguments: Any) -> Entry:
    """Looked up, and if need be done, with this node's packages and devices."""
    return store.do(*stage(*arguments))


def _called(store: Store, function: Callable[..., Any], *arguments: Any) -> Any:
    return function(*arguments)


def _bring(store: Store, entry: Entry) -> None:
    if not store.bring(entry.path):
        raise UserError(f"{socket.gethostname()} does not find {entry.path}; {SHARED}")


def _last_line(error: Exception) -> str:
    return str(error).strip().rpartition("\n")[2]
