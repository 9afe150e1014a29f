"""The canonical 4-bit form."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

from engines.int4 import Int4, nearest, stacked


def test_hand_worked_matrix() -> None:
    codes = np.array([[0, 8, 15, 9], [7, 8, 8, 12]], np.uint8)
    scales = np.array([[0.5, 2.0], [1.0, 0.25]], np.float16)
    weight = Int4(codes, scales, group_size=2)
    assert weight.shape == (2, 4)
    expected = [[-8 * 0.5, 0, 7 * 2.0, 1 * 2.0], [-1 * 1.0, 0, 0, 4 * 0.25]]
    assert weight.dequantize().dtype == np.float32
    np.testing.assert_array_equal(weight.dequantize(), np.array(expected, np.float32))


def test_dequantize_multiplies_in_float32() -> None:
    """A scale is widened, not the product rounded to float16."""
    scale = np.float16(0.1)
    weight = Int4(np.full((1, 8), 15, np.uint8), np.full((1, 1), scale), group_size=8)
    assert weight.dequantize()[0, 0] == np.float32(7) * np.float32(scale) != np.float16(7 * scale)


GOOD: dict[str, Any] = {
    "codes": np.zeros((2, 8), np.uint8),
    "scales": np.ones((2, 2), np.float32),
    "group_size": 4,
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codes": np.full((2, 8), 16, np.uint8)}, "codes go up to 16"),
        ({"codes": np.zeros((2, 8), np.int8)}, "expected uint8"),
        ({"codes": np.zeros((0, 8), np.uint8)}, "expected uint8"),
        ({"codes": np.zeros(8, np.uint8)}, "expected uint8"),
        ({"group_size": 3}, "do not divide into groups of 3"),
        ({"group_size": -1}, "do not divide"),
        ({"group_size": 0}, "do not divide"),
        ({"scales": np.ones((2, 1), np.float32)}, "expected \\(2, 2\\)"),
        ({"scales": np.ones((2, 2), np.float64)}, "expected float16 or float32"),
    ],
)
def test_refuses_inconsistent_parts(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Int4(**{**GOOD, **changes})


def test_every_column_may_have_a_scale_and_equal_weights_are_two() -> None:
    each, other = (Int4(GOOD["codes"], np.ones((2, 8), np.float32), group_size=1) for _ in range(2))
    np.testing.assert_array_equal(each.dequantize(), np.full((2, 8), -8))
    assert len({each, other}) == 2
    with pytest.raises(FrozenInstanceError):
        each.group_size = 2


@pytest.mark.parametrize("dtype", [np.float16, np.float32, ml_dtypes.bfloat16])
def test_nearest_by_hand(dtype: npt.DTypeLike) -> None:
    weight = np.array([[-8, 7, 0.4, 0.6, 2, 1, 0, -1], [16, -14, 2, 0, 0, 0, 0, 0]], dtype)
    found = nearest(weight, 4)
    assert found.scales.tolist() == [[1, -0.25], [-2, 0]]
    assert found.codes.tolist() == [[0, 15, 8, 9, 0, 4, 8, 12], [0, 15, 7, 8, 8, 8, 8, 8]]
    assert found.dequantize().tolist() == [[-8, 7, 0, 1, 2, 1, 0, -1], [16, -14, 2, 0, 0, 0, 0, 0]]


def test_nearest_is_within_half_a_step() -> None:
    weight = np.random.default_rng(0).standard_normal((9000, 32)).astype(np.float32)
    found = nearest(weight, 16)
    # A value as large as the largest, of the other sign, has no code of its own: it may miss by a whole step.
    steps = np.abs(found.scales.astype(np.float32)).repeat(16, axis=1)
    error = np.abs(found.dequantize() - weight) / steps
    assert error.max() < 1.01
    assert (error > 0.501).mean() < 0.03


def test_weights_below_what_a_scale_can_tell_stay_in_range() -> None:
    """A scale of 1.49 steps of float16's smallest is rounded to one: the largest value is 12 of them."""
    tiny = np.array([[8, -8, 2, 0]]) * 1.49 * float(np.finfo(np.float16).smallest_subnormal)
    assert nearest(tiny, 4).codes.tolist() == [[15, 0, 11, 8]]


def test_stacked_is_the_weights_one_after_another() -> None:
    random = np.random.default_rng(0)
    weights = [nearest(random.standard_normal((rows, 32)).astype(np.float32), 16) for rows in (3, 5)]
    expected = np.concatenate([weight.dequantize() for weight in weights])
    np.testing.assert_array_equal(stacked(weights).dequantize(), expected)
    with pytest.raises(ValueError, match=r"groups of \[16, 32\]"):
        stacked([weights[0], nearest(expected, 32)])
