"""The canonical 4-bit weight: integer codes with one scale per group of input columns, zero point 8.

Every storage layout (engines.packing) is an exact, invertible rearrangement of this form.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from engines.int8 import Int8

ZERO_POINT = 8
ROWS = 8192  # rounded at a time
W = TypeVar("W", "Int4", Int8)


@dataclass(frozen=True, eq=False)
class Int4:
    """A linear layer's weight [N, K] (N outputs, K inputs): `weight = (codes - 8) * scale of the group`.

    codes: uint8 [N, K] in 0..15; scales: float16 or float32 [N, K // group_size]; groups run along K.
    """

    codes: NDArray[np.uint8]
    scales: NDArray[np.floating]
    group_size: int

    def __post_init__(self) -> None:
        if self.codes.dtype != np.uint8 or self.codes.ndim != 2 or not self.codes.size:
            raise ValueError(f"codes are {self.codes.dtype} {self.codes.shape}: expected uint8 [N, K]")
        rows, columns = self.codes.shape
        if self.group_size <= 0 or columns % self.group_size:
            raise ValueError(f"{columns} columns do not divide into groups of {self.group_size}")
        if self.scales.shape != (rows, columns // self.group_size):
            raise ValueError(f"scales are {self.scales.shape}: expected {(rows, columns // self.group_size)}")
        if self.scales.dtype not in (np.float16, np.float32):
            raise ValueError(f"scales are {self.scales.dtype}: expected float16 or float32")
        if self.codes.max() > 15:
            raise ValueError(f"codes go up to {self.codes.max()}: expected 0..15")

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K): outputs and inputs of the layer."""
        rows, columns = self.codes.shape
        return rows, columns

    def dequantize(self) -> NDArray[np.float32]:
        """The weight the codes stand for, float32 [N, K]."""
        rows, columns = self.codes.shape
        grouped = self.codes.reshape(rows, -1, self.group_size).astype(np.float32)
        grouped -= ZERO_POINT
        grouped *= self.scales.astype(np.float32)[:, :, None]
        return grouped.reshape(rows, columns)


def stacked(weights: Sequence[W]) -> W:
    """The weights of several layers that read the same input as one, outputs one after another.

    Raises ValueError unless they have the same inputs and groups.
    """
    sizes = {weight.group_size for weight in weights}
    if len(sizes) != 1:
        raise ValueError(f"groups of {sorted(sizes)}: weights are stacked with groups of one size")
    codes = np.concatenate([weight.codes for weight in weights])
    return type(weights[0])(codes, np.concatenate([weight.scales for weight in weights]), sizes.pop())


def nearest(weight: NDArray[np.floating], group_size: int) -> Int4:
    """`weight` [N, K] with every value rounded to the nearest code; scales float16.

    The largest value of a group gets the code 0, the only one without a negative: the scale takes the sign
    that makes this so, and no code is wasted.
    """
    rows, columns = weight.shape
    codes = np.empty((rows, columns // group_size, group_size), np.uint8)
    scales = np.empty(codes.shape[:2], np.float16)
    for start in range(0, rows, ROWS):
        part = slice(start, start + ROWS)
        groups = weight[part].astype(np.float32).reshape(-1, columns // group_size, group_size)
        low, high = groups.min(-1), groups.max(-1)
        scales[part] = np.where(high > -low, high, low) / -ZERO_POINT
        steps = scales[part].astype(np.float32)[:, :, None]
        exact = np.divide(groups, steps, out=np.zeros_like(groups), where=steps != 0)
        codes[part] = np.clip(np.rint(exact) + ZERO_POINT, 0, 15)
    return Int4(codes.reshape(rows, columns), scales, group_size)
