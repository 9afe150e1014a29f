"""AWQ's scales and clipping where a few channels carry large activations, and their folding into a norm."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from quantize.awq import (
    RATIOS,
    ROWS,
    channel_scales,
    clipped,
    fold_into_linear,
    fold_into_norm,
    output_error,
    sampled,
)
from quantize.rtn import rtn

LOUD = torch.tensor([5, 77, 130, 201])


def inputs(tokens: int, seed: int) -> torch.Tensor:
    X = torch.randn(tokens, 256, generator=torch.Generator().manual_seed(seed))
    X[:, LOUD] *= 30
    return X


def weights() -> torch.Tensor:
    return torch.randn(128, 256, generator=torch.Generator().manual_seed(99)) * 0.05


def test_output_error_is_the_sum_of_squared_outputs() -> None:
    X, delta = inputs(100, seed=0), weights()
    torch.testing.assert_close(output_error(delta, X.T @ X), (X @ delta.T).square().sum(), rtol=1e-4, atol=0)


@pytest.mark.parametrize("group_size", [32, 64, 128])
def test_output_error_is_below_round_to_nearest(group_size: int) -> None:
    W, X, unseen = weights(), inputs(2048, seed=0), inputs(2048, seed=1)
    hessian = X.T @ X / len(X)
    scales = channel_scales(W, hessian, X.abs().mean(0), group_size)
    weight = clipped(W, scales, hessian, group_size)
    error = (unseen @ (torch.from_numpy(weight.dequantize()) / scales - W).T).norm()
    plain = (unseen @ (torch.from_numpy(rtn(W, group_size).dequantize()) - W).T).norm()
    assert error < 0.5 * plain


def test_loud_channels_are_scaled_up() -> None:
    X = inputs(2048, seed=0)
    scales = channel_scales(weights(), X.T @ X / len(X), X.abs().mean(0), 128)
    quiet = torch.ones(256, dtype=torch.bool)
    quiet[LOUD] = False
    assert scales[LOUD].min() > 1.5 * scales[quiet].max()
    torch.testing.assert_close(scales.max() * scales.min(), torch.tensor(1.0))


def test_equal_channels_need_no_scales() -> None:
    X = torch.randn(512, 256, generator=torch.Generator().manual_seed(0))
    scales = channel_scales(weights(), X.T @ X, torch.ones(256), 64)
    assert (scales == 1).all()


def test_a_channel_that_is_always_zero_does_not_break_the_scales() -> None:
    X = inputs(512, seed=0)
    X[:, 9] = 0
    scales = channel_scales(weights(), X.T @ X, X.abs().mean(0), 64)
    assert torch.isfinite(scales).all()
    assert (scales > 0).all()


def test_sampled_rows_rank_the_ratios_as_all_rows_do() -> None:
    generator = torch.Generator().manual_seed(3)
    W = torch.randn(4 * ROWS, 128, generator=generator) * 0.05
    X = torch.randn(1024, 128, generator=generator)
    X[:, ::37] *= 30
    hessian, magnitude = X.T @ X / len(X), X.abs().mean(0)

    def error(scales: torch.Tensor) -> float:
        weight = clipped(W, scales, hessian, 32).dequantize()
        return float(output_error(torch.from_numpy(weight) / scales - W, hessian))

    tried = [magnitude**ratio for ratio in RATIOS]
    assert error(channel_scales(W, hessian, magnitude, 32)) < 1.02 * min(map(error, tried))
    assert error(torch.ones(128)) > 1.2 * min(map(error, tried))


@pytest.mark.parametrize("rows", [1, ROWS, ROWS + 1, 5 * ROWS - 1])
def test_sampled(rows: int) -> None:
    found = sampled(torch.arange(rows)[:, None])[:, 0]
    assert min(rows, ROWS // 2) <= len(found) <= ROWS
    assert len(found.diff().unique()) <= 1
    assert rows - found[-1] <= 2 * (rows // len(found))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_folding_into_a_16_bit_norm_is_exact(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    norm = (torch.rand(256, generator=generator) + 0.1).to(dtype)
    norm[7] = 0
    wanted = torch.rand(256, generator=generator) * 3 + 0.1
    folded, scales = fold_into_norm(norm, wanted)
    assert folded.dtype == dtype
    X, W = torch.randn(32, 256, generator=generator), weights()
    before = (X * norm.float()) @ W.T
    torch.testing.assert_close((X * folded.float()) @ (W * scales).T, before, rtol=1e-4, atol=1e-5)
    # The scales asked for would have left the norm's own rounding in the result.
    naive = (X * folded.float()) @ (W * wanted).T
    assert (naive - before).norm() > 1e-4 * before.norm()


def test_folding_into_a_linear_keeps_its_codes() -> None:
    weight = rtn(weights(), 64)
    scales = torch.logspace(-1, 1, 128)
    folded = fold_into_linear(weight, scales)
    assert (folded.codes == weight.codes).all()
    back = folded.dequantize() * scales[:, None].numpy()
    assert np.abs(back - weight.dequantize()).max() <= np.abs(weight.dequantize()).max() / 256


def test_folding_below_the_smallest_scale_rounds_again() -> None:
    weight = rtn(weights() * 2.0**-9, 64)
    folded = fold_into_linear(weight, torch.full((128,), 4.0))
    assert folded.scales.min() == 2.0**-14
    assert np.abs(folded.dequantize() - weight.dequantize() / 4).max() <= 2.0**-15
