"""Round-to-nearest and the scales all methods share, on numbers worked out by hand."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch

from quantize.rtn import rtn
from quantize.scales import ROWS, SHRINKS, absmax, diagonal_blocks, encode, exact, search


def test_hand_worked_matrix() -> None:
    W = torch.tensor(
        [[7.0, -3.4, 0.4, 1.6, -14.0, 2.9, 3.1, 0.0], [-1.75, 0.25, 0.0, 0.6, 0.0, 0.0, 0.0, 0.0]]
    )
    weight = rtn(W, 4)
    # Scales are max|w| / 7: 1 and 2, then 0.25, and for a group of zeros the smallest there is.
    assert weight.scales.tolist() == [[1.0, 2.0], [0.25, 2.0**-14]]
    assert weight.codes.tolist() == [[15, 5, 8, 10, 1, 9, 10, 8], [1, 9, 8, 10, 8, 8, 8, 8]]
    assert weight.dequantize()[0].tolist() == [7, -3, 0, 2, -14, 2, 4, 0]


@pytest.mark.parametrize("group_size", [32, 64, 128])
def test_error_is_at_most_half_a_step(group_size: int) -> None:
    W = torch.randn(48, 256, generator=torch.Generator().manual_seed(0)) * 0.05
    weight = rtn(W, group_size)
    steps = np.repeat(weight.scales.astype(np.float32), group_size, axis=1)
    # The rounding of the scale itself can take the largest weight of a group a little beyond code 7.
    assert np.abs(weight.dequantize() - W.numpy()).max() <= (0.5 * steps * (1 + 2**-4)).max()
    assert (np.abs(weight.dequantize() - W.numpy()) <= 0.5 * steps * (1 + 2**-4)).all()


def test_scales_and_weights_are_the_same_numbers_in_every_16_bit_type() -> None:
    generator = torch.Generator().manual_seed(0)
    W = torch.randn(64, 128, generator=generator) * torch.logspace(-7, 4, 64)[:, None]
    weight = rtn(W, 32)
    scales = weight.scales.astype(np.float32)
    assert (scales.astype(ml_dtypes.bfloat16).astype(np.float32) == scales).all()
    assert (weight.dequantize().astype(np.float16).astype(np.float32) == weight.dequantize()).all()
    assert weight.scales.min() >= 2.0**-14


def test_exact_clamps_to_float16s_normal_range() -> None:
    assert exact(torch.tensor([0.0, 1e-9, 1.0, 1e9])).tolist() == [2.0**-14, 2.0**-14, 1.0, 65280.0]


def test_search_clips_an_outlier_that_no_input_reaches() -> None:
    W = torch.tensor([[8.0, 1.0, 1.5, 0.5]])
    # Nothing flows through the first column: the range may shrink to the grid's end, 8 / 7 / 2.
    assert search(W, 4, torch.tensor([0.0, 1.0, 1.0, 1.0])).item() < 0.6
    # Everything flows through it: absmax stays.
    assert search(W, 4, torch.tensor([1e6, 1.0, 1.0, 1.0])).item() == absmax(W, 4).item()


@pytest.mark.parametrize("group_size", [32, 64])
def test_search_by_the_diagonal_alone(group_size: int) -> None:
    generator = torch.Generator().manual_seed(2)
    W, diagonal = torch.randn(2 * ROWS + 3, 64, generator=generator), torch.rand(64, generator=generator)
    blocks = diagonal_blocks(torch.diag(diagonal), group_size)
    assert (search(W, group_size, diagonal) == search(W, group_size, blocks)).float().mean() > 0.999


def test_search_finds_the_best_scale_of_its_grid() -> None:
    generator = torch.Generator().manual_seed(1)
    W = torch.randn(8, 64, generator=generator)
    X = torch.randn(256, 64, generator=generator) @ torch.randn(64, 64, generator=generator)
    hessian = X.T @ X

    def errors(scales: torch.Tensor) -> torch.Tensor:
        delta = torch.from_numpy(encode(W, scales, 32).dequantize()) - W
        return torch.stack([(X[:, g : g + 32] @ delta[:, g : g + 32].T).square().sum(0) for g in (0, 32)], 1)

    full_range = W.reshape(8, 2, 32).abs().amax(-1) / 7
    best = torch.stack([errors(exact(full_range * shrink)) for shrink in SHRINKS]).amin(0)
    torch.testing.assert_close(errors(search(W, 32, diagonal_blocks(hessian, 32))), best, rtol=1e-3, atol=0)
    assert (best < errors(absmax(W, 32))).any()
