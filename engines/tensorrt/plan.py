"""What a compiled plan consists of, read from the builder's own report of it."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

TENSOR = re.compile(r"\{ Name: ([^,]+), Dimensions: \[([-\d,]*)\].*?Datatype: (\w+)")


@dataclass(frozen=True)
class Layer:
    """A kernel: what it reads by name, and how many constants of each type it holds."""

    name: str
    inputs: frozenset[str]
    constants: Counter[str]


@dataclass(frozen=True)
class Plan:
    """The layers of one compiled graph, as the device will run them."""

    layers: tuple[Layer, ...]

    @property
    def constants(self) -> Counter[str]:
        """Weights by the type they have in the plan: Int4, Half, Float ..."""
        return sum((layer.constants for layer in self.layers), Counter())

    @property
    def attention_kernels(self) -> int:
        """Layers that are a whole attention: no scores are written to memory."""
        return sum("_mha_" in layer.name for layer in self.layers)

    def products(self, kind: str) -> int:
        """Layers that multiply by weights of that type; one that reads nothing else only widens them."""
        return sum(layer.constants[kind] > 0 and bool(layer.inputs) for layer in self.layers)

    def unread(self, inputs: Iterable[str]) -> list[str]:
        """Those network inputs that no layer reads; a cache is read under the name it is written back to."""
        read = frozenset().union(*(layer.inputs for layer in self.layers))
        return [name for name in inputs if not {name, name.replace("past_", "present_", 1)} & read]


def parse_plan(log: Iterable[str]) -> Plan:
    """The plan in the messages of a build with the verbosest logger and ProfilingVerbosity.DETAILED."""
    lines = (line.strip() for message in log for line in message.splitlines())
    return Plan(tuple(_layer(line) for line in lines if line.startswith("Name: ") and "LayerType: " in line))


def _layer(line: str) -> Layer:
    head, _, rest = line.partition(", LayerType: ")
    inputs, _, rest = rest.partition("Constants: [")
    constants = rest.partition("], Outputs: [")[0]
    counted: Counter[str] = Counter()
    for _, dimensions, kind in TENSOR.findall(constants):
        counted[kind] += math.prod(int(size) for size in dimensions.split(",") if size)
    read = frozenset(name for name, _, _ in TENSOR.findall(inputs))
    return Layer(head.removeprefix("Name: "), read, counted)
