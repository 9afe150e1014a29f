"""The weights of a graph, mapped for a compiler that reads them where they are."""

from __future__ import annotations

import mmap
from pathlib import Path
from threading import Event, Thread

import numpy as np
import onnx


class MappedWeights:
    """Address and length of every tensor in the files beside a graph, by name.

    In a `with` block, pages that were read are given back once a second: the system keeps them cached while
    there is room, but they no longer count as this process's memory, where they would double a large model's.
    """

    def __init__(self, graph: Path, model: onnx.ModelProto) -> None:
        self.tensors: dict[str, tuple[int, int]] = {}
        self._files: dict[str, mmap.mmap] = {}
        for tensor in model.graph.initializer:
            if not tensor.external_data:
                continue
            entry = {item.key: item.value for item in tensor.external_data}
            base = self._map(graph.parent / entry["location"])
            self.tensors[tensor.name] = (base + int(entry.get("offset", 0)), int(entry["length"]))
        self._done = Event()
        self._thread = Thread(target=self._give_back, daemon=True)

    def _map(self, path: Path) -> int:
        if path.name not in self._files:
            with path.open("rb") as file:
                self._files[path.name] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return int(np.frombuffer(self._files[path.name], np.uint8).ctypes.data)

    def __enter__(self) -> MappedWeights:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _give_back(self) -> None:
        while not self._done.wait(1.0):
            for file in self._files.values():
                file.madvise(mmap.MADV_DONTNEED)
