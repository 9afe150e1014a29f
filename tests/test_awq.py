"""AWQ's scales and clipping where a few channels carry large activations, and their folding into a norm."""

from __future__ import annotations

import pytest
import torch

from quantize.awq import channel_scales, clipped, fold_into_norm, output_error
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
    scales = channel_scales([W[:96], W[96:]], hessian, X.abs().mean(0), group_size)
    weight = clipped(W * scales, hessian / scales / scales[:, None], group_size)
    error = (unseen @ (torch.from_numpy(weight.dequantize()) / scales - W).T).norm()
    plain = (unseen @ (torch.from_numpy(rtn(W, group_size).dequantize()) - W).T).norm()
    assert error < 0.5 * plain


def test_loud_channels_are_scaled_up() -> None:
    X = inputs(2048, seed=0)
    scales = channel_scales([weights()], X.T @ X / len(X), X.abs().mean(0), 128)
    quiet = torch.ones(256, dtype=torch.bool)
    quiet[LOUD] = False
    assert scales[LOUD].min() > 1.5 * scales[quiet].max()
    torch.testing.assert_close(scales.max() * scales.min(), torch.tensor(1.0))


def test_equal_channels_need_no_scales() -> None:
    X = torch.randn(512, 256, generator=torch.Generator().manual_seed(0))
    scales = channel_scales([weights()], X.T @ X, torch.ones(256), 64)
    assert (scales == 1).all()


def test_a_channel_that_is_always_zero_does_not_break_the_scales() -> None:
    X = inputs(512, seed=0)
    X[:, 9] = 0
    scales = channel_scales([weights()], X.T @ X, X.abs().mean(0), 64)
    assert torch.isfinite(scales).all()
    assert (scales > 0).all()


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
