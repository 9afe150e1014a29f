"""8-bit weights: integer codes with one scale per group of input columns, zero point 128.

Of the vision tower beside a 4-bit decoder a group is a whole row; of decoder layers that 4 bits would damage
it has as many columns as those in 4 bits.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

ZERO_POINT = 128
TINY = 1e-30  # keeps a row of zeros from dividing by zero


@dataclass(frozen=True, eq=False)
class Int8:
    """A linear layer's weight [N, K]: `weight = (codes - 128) * scale of the group`.

    codes: uint8 [N, K]; scales: float16 or float32 [N, K // group_size]. Unsigned, because the product of
    unsigned with signed bytes saturates in the 16-bit sums of a CPU with AVX2 alone.
    """

    codes: NDArray[np.uint8]
    scales: NDArray[np.floating]
    group_size: int

    def __post_init__(self) -> None:
        rows, columns = self.codes.shape
        if columns % self.group_size or self.scales.shape != (rows, columns // self.group_size):
            raise ValueError(f"scales are {self.scales.shape}: expected {(rows, columns // self.group_size)}")

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K): outputs and inputs of the layer."""
        rows, columns = self.codes.shape
        return rows, columns

    def dequantize(self) -> NDArray[np.float32]:
        """The weight the codes stand for, float32 [N, K]."""
        rows, columns = self.codes.shape
        grouped = self.codes.reshape(rows, -1, self.group_size).astype(np.float32) - ZERO_POINT
        return (grouped * self.scales.astype(np.float32)[:, :, None]).reshape(rows, columns)


def nearest(weight: NDArray[np.floating]) -> Int8:
    """`weight` [N, K] with every value rounded to the nearest code; a row is one group."""
    wide = weight.astype(np.float32)
    scales = np.abs(wide).max(axis=1, keepdims=True) / (ZERO_POINT - 1)
    exact = np.divide(wide, scales, out=np.zeros_like(wide), where=scales > 0)
    return Int8((np.rint(exact) + ZERO_POINT).astype(np.uint8), scales, wide.shape[1])
