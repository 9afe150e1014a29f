"""Packings: worked by hand, inverted at random, and read by the software they are for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import ml_dtypes
import numpy as np
import onnxruntime
import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32
from onnx import TensorProto, helper, numpy_helper

from engines import packing
from engines.errors import UserError
from engines.int4 import Int4
from engines.int8 import Int8

# Eight columns 1..8 of one output, and the int32 they make with the first code in the lowest bits.
COUNT = np.arange(1, 9, dtype=np.uint8)
COUNT_PACKED = 0x87654321


def as_unsigned(packed: np.ndarray) -> np.ndarray:
    return packed.view(np.uint32)


def random_weight(
    seed: int, rows: int = 24, columns: int = 64, group: int = 16, dtype: Any = np.float16
) -> Int4:
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 16, (rows, columns)).astype(np.uint8)
    scales = (rng.random((rows, columns // group)) * 0.02 + 0.001).astype(dtype)
    return Int4(codes, scales, group)


def assert_equal(found: Int4, expected: Int4) -> None:
    np.testing.assert_array_equal(found.codes, expected.codes)
    np.testing.assert_array_equal(found.scales, expected.scales)
    assert found.scales.dtype == expected.scales.dtype
    assert found.group_size == expected.group_size


def test_compressed_tensors_by_hand() -> None:
    codes = np.stack([COUNT, COUNT[::-1]])
    packed = packing.to_compressed_tensors(Int4(codes, np.ones((2, 1), np.float16), 8))
    np.testing.assert_array_equal(as_unsigned(packed["weight_packed"]), [[COUNT_PACKED], [0x12345678]])
    np.testing.assert_array_equal(packed["weight_shape"], [2, 8])


def test_autogptq_by_hand() -> None:
    """Eight outputs, eight inputs in two groups; output n has codes n, n, n, ..."""
    codes = np.tile(np.arange(8, dtype=np.uint8)[:, None], (1, 8))
    scales = np.arange(16, dtype=np.float16).reshape(8, 2)
    packed = packing.to_autogptq(Int4(codes, scales, 4))
    np.testing.assert_array_equal(
        as_unsigned(packed["qweight"]), [[n * 0x11111111 for n in range(8)]]
    )  # [K/8, N]: each output's column packs its own eight inputs
    np.testing.assert_array_equal(as_unsigned(packed["qzeros"]), [[0x77777777], [0x77777777]])
    np.testing.assert_array_equal(packed["scales"], scales.T)
    np.testing.assert_array_equal(packed["g_idx"], [0, 0, 0, 0, 1, 1, 1, 1])


def test_awq_by_hand() -> None:
    """One int32 holds eight outputs, from the lowest bits 0 2 4 6 1 3 5 7."""
    codes = np.tile(COUNT[:, None], (1, 8))  # output n has code n + 1 for every input
    packed = packing.to_awq(Int4(codes, np.ones((8, 1), np.float16), 8))
    np.testing.assert_array_equal(as_unsigned(packed["qweight"]), np.full((8, 1), 0x86427531))
    np.testing.assert_array_equal(as_unsigned(packed["qzeros"]), [[0x88888888]])


def test_matmulnbits_by_hand() -> None:
    codes = np.concatenate([COUNT, COUNT[::-1]])[None]
    blob, scales = packing.to_matmulnbits(Int4(codes, np.array([[1, 2]], np.float32), 8))
    np.testing.assert_array_equal(blob, [[[0x21, 0x43, 0x65, 0x87], [0x78, 0x56, 0x34, 0x12]]])
    np.testing.assert_array_equal(scales, [[1, 2]])


def test_eight_bits_by_hand() -> None:
    """Four codes to an int32, the first in the lowest byte; MatMulNBits takes them a byte each."""
    weight = Int8(np.array([[1, 2, 3, 4, 5, 6, 7, 255]], np.uint8), np.array([[1, 2]], np.float32), 4)
    packed = packing.to_compressed_tensors(weight)
    np.testing.assert_array_equal(as_unsigned(packed["weight_packed"]), [[0x04030201, 0xFF070605]])
    back = packing.from_compressed_tensors(packed)
    assert isinstance(back, Int8)
    np.testing.assert_array_equal(back.codes, weight.codes)
    np.testing.assert_array_equal(back.scales, weight.scales)
    assert back.group_size == 4
    blob, scales = packing.to_matmulnbits(weight)
    np.testing.assert_array_equal(blob, [[[1, 2, 3, 4], [5, 6, 7, 255]]])
    np.testing.assert_array_equal(scales, [[1, 2]])
    with pytest.raises(UserError, match=r"^6 codes do not fill int32s: this layout needs a multiple of 4$"):
        packing.to_compressed_tensors(Int8(weight.codes[:, :6], np.ones((1, 1), np.float32), 6))


ROUND_TRIPS: dict[str, Callable[[Int4], Int4]] = {
    "compressed-tensors": lambda weight: packing.from_compressed_tensors(
        packing.to_compressed_tensors(weight)
    ),
    "gptq": lambda weight: packing.from_autogptq(packing.to_autogptq(weight)),
    "gptq_v2": lambda weight: packing.from_autogptq(packing.to_autogptq(weight, "gptq_v2"), "gptq_v2"),
    "awq": lambda weight: packing.from_awq(packing.to_awq(weight)),
    "matmulnbits": lambda weight: packing.from_matmulnbits(*packing.to_matmulnbits(weight)),
}


@pytest.mark.parametrize("layout", ROUND_TRIPS)
@pytest.mark.parametrize(
    ("rows", "columns", "group", "dtype"),
    [(8, 8, 8, np.float16), (24, 64, 16, np.float32), (40, 96, 32, np.float16), (16, 128, 128, np.float16)],
)
def test_round_trip_is_exact(layout: str, rows: int, columns: int, group: int, dtype: Any) -> None:
    for seed in range(5):
        weight = random_weight(seed, rows, columns, group, dtype)
        assert_equal(ROUND_TRIPS[layout](weight), weight)


def test_compressed_tensors_own_packing() -> None:
    weight = random_weight(1)
    signed = torch.from_numpy(weight.codes.astype(np.int8) - 8)
    packed = packing.to_compressed_tensors(weight)["weight_packed"]
    np.testing.assert_array_equal(packed, pack_to_int32(signed, 4).numpy())
    back = unpack_from_int32(torch.from_numpy(packed), 4, torch.Size(weight.shape))
    np.testing.assert_array_equal(back.numpy(), signed.numpy())


@pytest.mark.parametrize("group", [16, 32, 64, 128])
def test_onnxruntime_multiplies_by_the_same_weight(group: int) -> None:
    """MatMulNBits in full precision on the identity gives every weight back, transposed and bit for bit."""
    weight = random_weight(group, rows=24, columns=256, group=group, dtype=np.float32)
    blob, scales = packing.to_matmulnbits(weight)
    rows, columns = weight.shape
    node = helper.make_node(
        "MatMulNBits", ["x", "blob", "scales"], ["y"], domain="com.microsoft",
        K=columns, N=rows, bits=4, block_size=group, accuracy_level=0,
    )  # fmt: skip
    graph = helper.make_graph(
        [node],
        "identity",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, columns])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, rows])],
        [numpy_helper.from_array(blob, "blob"), numpy_helper.from_array(scales, "scales")],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (product,) = session.run(None, {"x": np.eye(columns, dtype=np.float32)})
    np.testing.assert_array_equal(product.T, weight.dequantize())


def test_bfloat16_scales_widen_exactly() -> None:
    weight = random_weight(3)
    packed = packing.to_compressed_tensors(weight)
    narrow = weight.scales.astype(ml_dtypes.bfloat16)
    read = packing.from_compressed_tensors({**packed, "weight_scale": narrow})
    assert read.scales.dtype == np.float32
    np.testing.assert_array_equal(read.scales, narrow.astype(np.float32))


def changed(packed: Mapping[str, Any], name: str, value: Any) -> dict[str, Any]:
    return {**packed, name: value}


def test_refuses_what_is_not_symmetric() -> None:
    weight = random_weight(4)
    gptq, awq, ct = packing.to_autogptq(weight), packing.to_awq(weight), packing.to_compressed_tensors(weight)
    # v2 zeros read as v1 mean 9, v1 zeros read as v2 mean 7: neither is the symmetric 8.
    with pytest.raises(UserError, match="qzeros hold 8, expected 7"):
        packing.from_autogptq(packing.to_autogptq(weight, "gptq_v2"), "gptq")
    with pytest.raises(UserError, match="qzeros hold 7, expected 8"):
        packing.from_autogptq(gptq, "gptq_v2")
    with pytest.raises(UserError, match="qzeros hold 7, expected 8"):
        packing.from_awq(changed(awq, "qzeros", gptq["qzeros"]))
    with pytest.raises(UserError, match="weight_zero_point"):
        packing.from_compressed_tensors(changed(ct, "weight_zero_point", np.zeros((24, 4), np.int32)))


def test_refuses_an_activation_order() -> None:
    weight = random_weight(5)
    gptq, ct = packing.to_autogptq(weight), packing.to_compressed_tensors(weight)
    shuffled = np.random.default_rng(0).permutation(gptq["g_idx"])
    with pytest.raises(UserError, match="g_idx reorders"):
        packing.from_autogptq(changed(gptq, "g_idx", shuffled))
    with pytest.raises(UserError, match="weight_g_idx"):
        packing.from_compressed_tensors(changed(ct, "weight_g_idx", shuffled))
    # Some writers leave a trivial g_idx out.
    assert_equal(packing.from_autogptq({k: v for k, v in gptq.items() if k != "g_idx"}), weight)


def test_refuses_shapes_that_do_not_fit() -> None:
    weight = random_weight(6)
    ct = packing.to_compressed_tensors(weight)
    with pytest.raises(UserError, match=r"weight_shape says \(24, 65\)"):
        packing.from_compressed_tensors(changed(ct, "weight_shape", np.array([24, 65])))
    with pytest.raises(UserError, match=r"scales .* do not fit"):
        packing.from_compressed_tensors(changed(ct, "weight_scale", np.ones((24, 3), np.float16)))
    with pytest.raises(UserError, match="expected a matrix of int32"):
        packing.from_compressed_tensors(changed(ct, "weight_packed", ct["weight_packed"].astype(np.int64)))
    odd = Int4(np.zeros((6, 8), np.uint8), np.ones((6, 1), np.float16), 8)
    with pytest.raises(UserError, match="multiple of 8"):
        packing.to_awq(odd)
    with pytest.raises(UserError, match="multiple of 8"):
        packing.to_autogptq(odd)
