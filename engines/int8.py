"""8-bit weights for products with 8-bit activations: one scale per output, zero point 128."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

ZERO_POINT = 128
TINY = 1e-30  # keeps a row of zeros from dividing by zero


@dataclass(frozen=True, eq=False)
class Int8:
    """A linear layer's weight [N, K]: `weight = (codes - 128) * scale of the row`.

    codes: uint8 [N, K]; scales: float32 [N]. Unsigned, because the product of unsigned with signed bytes
    saturates in the 16-bit sums of a CPU with AVX2 alone.
    """

    codes: NDArray[np.uint8]
    scales: NDArray[np.float32]

    def dequantize(self) -> NDArray[np.float32]:
        """The weight the codes stand for, float32 [N, K]."""
        return (self.codes.astype(np.float32) - ZERO_POINT) * self.scales[:, None]


def nearest(weight: NDArray[np.floating]) -> Int8:
    """`weight` [N, K] with every value rounded to the nearest code."""
    wide = weight.astype(np.float32)
    scales = np.abs(wide).max(axis=1) / (ZERO_POINT - 1)
    exact = np.divide(wide, scales[:, None], out=np.zeros_like(wide), where=scales[:, None] > 0)
    return Int8((np.rint(exact) + ZERO_POINT).astype(np.uint8), scales)
