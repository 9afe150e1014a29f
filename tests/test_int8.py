"""The 8-bit weight of products with 8-bit activations."""

from __future__ import annotations

import numpy as np

from engines.int8 import nearest


def test_nearest_by_hand() -> None:
    found = nearest(np.array([[-127, 63.4, 0, 126.6], [0, 0, 0, 0], [0.5, -0.25, 0.125, 0]], np.float16))
    assert found.scales.tolist() == [[1], [0], [np.float32(0.5) / np.float32(127)]]
    assert found.codes.tolist() == [[1, 191, 128, 255], [128] * 4, [255, 64, 160, 128]]


def test_nearest_is_within_half_a_step() -> None:
    weight = np.random.default_rng(0).standard_normal((64, 96)).astype(np.float32)
    found = nearest(weight)
    assert (np.abs(found.dequantize() - weight) <= 0.501 * found.scales).all()
