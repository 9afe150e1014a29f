"""Exact packings of Int4, and of Int8 where a layout has it, into the layouts other software reads, and back.

Every layout puts eight codes into an int32, the first in the lowest four bits, which on a little-endian
machine is two codes to a byte, low nibble first. They differ in the axis packed along, the order within
eight, and the zero point.

- compressed-tensors "pack-quantized": along K; symmetric, codes offset by 8, no zero points stored.
- AutoGPTQ ("gptq", v1): transposed, along K; a zero point is stored less one, so 8 is stored as 7.
- AutoAWQ GEMM: transposed, along N in the order 0 2 4 6 1 3 5 7; zero points stored as they are.
- ONNX Runtime's MatMulNBits: bytes [N, K / group, group / 2]; without a zero-point input it means 8.
- ONNX's blocked DequantizeLinear: signed, transposed, bytes along N; symmetric, no zero points.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.errors import UserError
from engines.int4 import ZERO_POINT, Int4
from engines.int8 import Int8

Array = NDArray[Any]

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # slot i of an int32 holds the column AWQ_ORDER[i] of its eight
GPTQ_STORED_ZERO = {"gptq": ZERO_POINT - 1, "gptq_v2": ZERO_POINT}


def to_compressed_tensors(weight: Int4 | Int8) -> dict[str, Array]:
    """weight_packed int32 [N, K/8], of 8 bits [N, K/4]; weight_scale [N, K/group], weight_shape int64 [2]."""
    return {
        "weight_packed": _pack(weight.codes) if isinstance(weight, Int4) else _pack_bytes(weight.codes),
        "weight_scale": weight.scales,
        "weight_shape": np.array(weight.shape, np.int64),
    }


def from_compressed_tensors(tensors: Mapping[str, Array]) -> Int4 | Int8:
    """Inverse of `to_compressed_tensors`, whose shapes tell the bits; UserError for zero points or an
    activation order."""
    if extra := [name for name in ("weight_zero_point", "weight_g_idx") if name in tensors]:
        raise UserError(f"has {extra[0]}: only symmetric weights without an activation order are supported")
    rows, columns = (int(size) for size in tensors["weight_shape"])
    packed = tensors["weight_packed"]
    if packed.shape == (rows, columns // 4) and packed.dtype == np.int32:
        return Int8(
            np.ascontiguousarray(packed).view(np.uint8), *_grouped(packed, tensors["weight_scale"], columns)
        )
    codes = _unpack(packed)
    if codes.shape != (rows, columns):
        raise UserError(f"weight_packed holds {codes.shape} 4-bit codes, weight_shape says {(rows, columns)}")
    return _int4(codes, tensors["weight_scale"])


def to_autogptq(weight: Int4, checkpoint_format: str = "gptq") -> dict[str, Array]:
    """qweight int32 [K/8, N], qzeros int32 [K/group, N/8], scales [K/group, N], g_idx int32 [K]."""
    rows, columns = weight.shape
    zeros = np.full((columns // weight.group_size, rows), GPTQ_STORED_ZERO[checkpoint_format], np.uint8)
    return {
        "qweight": np.ascontiguousarray(_pack(weight.codes).T),
        "qzeros": _pack(zeros),
        "scales": np.ascontiguousarray(weight.scales.T),
        "g_idx": (np.arange(columns) // weight.group_size).astype(np.int32),
    }


def from_autogptq(tensors: Mapping[str, Array], checkpoint_format: str = "gptq") -> Int4:
    """Inverse of `to_autogptq`; UserError for other zero points or a g_idx that reorders the columns."""
    codes = _unpack(np.ascontiguousarray(tensors["qweight"].T))
    weight = _int4(codes, np.ascontiguousarray(tensors["scales"].T))
    _check_zeros(_unpack(tensors["qzeros"]), GPTQ_STORED_ZERO[checkpoint_format])
    g_idx = tensors.get("g_idx")
    if g_idx is not None and not np.array_equal(g_idx, np.arange(weight.shape[1]) // weight.group_size):
        raise UserError(
            "g_idx reorders the columns (act-order without static groups): quantize with static groups"
        )
    return weight


def to_awq(weight: Int4) -> dict[str, Array]:
    """qweight int32 [K, N/8], qzeros int32 [K/group, N/8], scales [K/group, N]."""
    rows, columns = weight.shape
    zeros = np.full((columns // weight.group_size, rows), ZERO_POINT, np.uint8)
    by_input = np.ascontiguousarray(weight.codes.T)
    return {
        "qweight": _pack(_reorder(by_input, AWQ_ORDER)),
        "qzeros": _pack(_reorder(zeros, AWQ_ORDER)),
        "scales": np.ascontiguousarray(weight.scales.T),
    }


def from_awq(tensors: Mapping[str, Array]) -> Int4:
    """Inverse of `to_awq`; UserError for zero points other than 8."""
    inverse = tuple(int(slot) for slot in np.argsort(AWQ_ORDER))
    by_input = _reorder(_unpack(tensors["qweight"]), inverse)
    _check_zeros(_unpack(tensors["qzeros"]), ZERO_POINT)
    return _int4(np.ascontiguousarray(by_input.T), np.ascontiguousarray(tensors["scales"].T))


def to_matmulnbits(weight: Int4 | Int8) -> tuple[NDArray[np.uint8], NDArray[np.floating]]:
    """The B and scales inputs of MatMulNBits: uint8 [N, K/group, group/2], of 8 bits [N, K/group, group], and
    [N, K/group]."""
    rows, columns = weight.shape
    stored = _nibbles(weight.codes) if isinstance(weight, Int4) else weight.codes
    return stored.reshape(rows, columns // weight.group_size, -1), weight.scales


def from_matmulnbits(blob: NDArray[np.uint8], scales: NDArray[np.floating]) -> Int4:
    """Inverse of `to_matmulnbits`."""
    return _int4(_codes(blob.reshape(blob.shape[0], -1)), scales.reshape(blob.shape[0], -1))


def to_dequantizelinear(weight: Int4) -> tuple[NDArray[np.uint8], NDArray[np.floating]]:
    """The codes and scales of ONNX's blocked DequantizeLinear (axis 0) for x @ W: [K, N] and [K / group, N].

    Codes are signed and two to a byte along N, the first in the low half (ONNX's INT4 in raw_data).
    Raises ValueError when N is odd.
    """
    signed = np.ascontiguousarray(weight.codes.T) ^ np.uint8(ZERO_POINT)  # two's complement of codes - 8
    return _nibbles(signed), np.ascontiguousarray(weight.scales.T)


def _int4(codes: NDArray[np.uint8], scales: Array) -> Int4:
    return Int4(codes, *_grouped(codes, scales, codes.shape[1]))


def _grouped(codes: Array, scales: Array, columns: int) -> tuple[Array, int]:
    """Scales as they are computed with, and the columns of a group."""
    rows = len(codes)
    if scales.ndim != 2 or scales.shape[0] != rows or not scales.shape[1] or columns % scales.shape[1]:
        raise UserError(f"scales {scales.shape} do not fit a weight of {rows} outputs and {columns} inputs")
    # bfloat16 widens to float32 without loss; float16 and float32 stay as they are.
    exact = scales if scales.dtype in (np.float16, np.float32) else scales.astype(np.float32)
    return exact, columns // scales.shape[1]


def _check_zeros(zeros: NDArray[np.uint8], expected: int) -> None:
    if (found := zeros[zeros != expected]).size:
        raise UserError(
            f"qzeros hold {found[0]}, expected {expected}: only symmetric 4-bit weights are supported"
        )


def _nibbles(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return codes[..., 0::2] | (codes[..., 1::2] << np.uint8(4))


def _codes(nibbles: NDArray[np.uint8]) -> NDArray[np.uint8]:
    codes = np.empty((*nibbles.shape[:-1], nibbles.shape[-1] * 2), np.uint8)
    codes[..., 0::2] = nibbles & 15
    codes[..., 1::2] = nibbles >> 4
    return codes


def _pack(codes: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Eight codes to an int32 along the last axis."""
    if codes.shape[-1] % 8:
        raise UserError(f"{codes.shape[-1]} codes do not fill int32s: this layout needs a multiple of 8")
    return np.ascontiguousarray(_nibbles(codes)).view("<i4")


def _pack_bytes(codes: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Four codes to an int32 along the last axis, the first in the lowest byte."""
    if codes.shape[-1] % 4:
        raise UserError(f"{codes.shape[-1]} codes do not fill int32s: this layout needs a multiple of 4")
    return np.ascontiguousarray(codes).view("<i4")


def _unpack(packed: Array) -> NDArray[np.uint8]:
    if packed.dtype != np.int32 or packed.ndim != 2:
        raise UserError(f"packed codes are {packed.dtype} {packed.shape}: expected a matrix of int32")
    return _codes(np.ascontiguousarray(packed).view(np.uint8))


def _reorder(codes: NDArray[np.uint8], order: tuple[int, ...]) -> NDArray[np.uint8]:
    rows, columns = codes.shape
    if columns % 8:
        raise UserError(f"{columns} outputs do not fill int32s: this layout needs a multiple of 8")
    return codes.reshape(rows, -1, 8)[:, :, list(order)].reshape(rows, columns)
