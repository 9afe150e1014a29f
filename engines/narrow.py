"""Weights in 8- and 4-bit floats, which recent NVIDIA GPUs multiply as they are; rounded to nearest.

A float's steps grow with its value, so an outlier coarsens the rest less than among integers.
"""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

E4M3, E2M1 = np.dtype(ml_dtypes.float8_e4m3fn), np.dtype(ml_dtypes.float4_e2m1fn)
E4M3_MAX, E4M3_LEAST, E2M1_MAX = 448.0, 2.0**-9, 6.0
TINY = float(np.finfo(np.float16).tiny)  # below it fp16 has fewer bits
BLOCK = 16  # inputs that share a scale in NVFP4


@dataclass(frozen=True, eq=False)
class Fp8:
    """A linear layer's weight [N, K] in E4M3 (OCP OFP8): `weight = codes * scale of the output`.

    codes: float8_e4m3fn [N, K]; scales: float16 [N].
    """

    codes: NDArray[np.generic]
    scales: NDArray[np.float16]

    def dequantize(self) -> NDArray[np.float32]:
        """The weight the codes stand for, float32 [N, K]."""
        wide: NDArray[np.float32] = self.codes.astype(np.float32) * self.scales.astype(np.float32)[:, None]
        return wide


@dataclass(frozen=True, eq=False)
class Nvfp4:
    """A linear layer's weight [N, K] in E2M1: `weight = codes * scale of the block * scale` (NVIDIA's NVFP4).

    codes: float4_e2m1fn [N, K]; blocks: float8_e4m3fn [N, K / 16]; scale: float32, of the whole matrix.
    """

    codes: NDArray[np.generic]
    blocks: NDArray[np.generic]
    scale: np.float32

    def dequantize(self) -> NDArray[np.float32]:
        """The weight the codes stand for, float32 [N, K]."""
        steps = self.blocks.astype(np.float32) * self.scale
        wide: NDArray[np.float32] = self.codes.astype(np.float32) * np.repeat(steps, BLOCK, axis=1)
        return wide


def to_fp8(weight: NDArray[np.generic]) -> Fp8:
    """`weight` [N, K] with the largest of every output at E4M3's end, 448."""
    wide = weight.astype(np.float32)
    peaks = np.abs(wide).max(axis=1)
    scales = np.where(peaks > 0, np.maximum(peaks / E4M3_MAX, TINY), 1).astype(np.float16)
    codes = np.clip(wide / scales.astype(np.float32)[:, None], -E4M3_MAX, E4M3_MAX).astype(E4M3)
    return Fp8(codes, scales)


def to_nvfp4(weight: NDArray[np.generic]) -> Nvfp4:
    """`weight` [N, K], K a multiple of 16, with the largest block scale at E4M3's end and the largest of each
    block at E2M1's, 6."""
    rows, columns = weight.shape
    grouped = weight.astype(np.float32).reshape(rows, columns // BLOCK, BLOCK)
    peaks = np.abs(grouped).max(axis=2) / np.float32(E2M1_MAX)
    scale = np.float32(peaks.max() / E4M3_MAX or 1)
    blocks = (peaks / scale).astype(E4M3)
    steps = blocks.astype(np.float32) * scale
    exact = np.divide(grouped, steps[:, :, None], out=np.zeros_like(grouped), where=steps[:, :, None] > 0)
    codes = np.clip(exact, -E2M1_MAX, E2M1_MAX).astype(E2M1)
    return Nvfp4(codes.reshape(rows, columns), blocks, scale)


def paired(codes: NDArray[np.generic]) -> NDArray[np.uint8]:
    """float4_e2m1fn [M, N] as uint8 [M, N / 2]: two codes to a byte, the first in the low bits."""
    nibbles: NDArray[np.uint8] = codes.view(np.uint8) & np.uint8(15)
    return nibbles[:, ::2] | nibbles[:, 1::2] << np.uint8(4)
