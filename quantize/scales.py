"""Scales of symmetric 4-bit groups: weight = code * scale, code -8..7, a scale per row and group of columns.

Every scale is rounded to 8 significant bits within float16's normal range, so that it is the same number in
float16, bfloat16 and float32, and code * scale is exact in float16 (3 + 8 bits). One set of codes and scales
then means the same weights in every checkpoint format and in every dtype a loader chooses. Codes are chosen
after the rounding, which therefore costs next to nothing.

"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from engines.int4 import Int4

SMALLEST = 2.0**-14  # smallest normal float16: below it kernels may flush to zero
LARGEST = 65280.0  # largest value of 8 significant bits in float16
SHRINKS = tuple(1 - step / 40 for step in range(21))  # 1.0 down to 0.5 of the range
ROWS = 2048  # searched at once: their intermediate results stay in the cache


def absmax(W: torch.Tensor, group_size: int) -> torch.Tensor:
    """The scale [N, K / group_size] at which the largest magnitude of each group of W [N, K] is code 7."""
    return exact(grouped(W, group_size).abs().amax(-1) / 7)


def search(
    W: torch.Tensor, group_size: int, hessian: torch.Tensor, shrinks: Sequence[float] = SHRINKS
) -> torch.Tensor:
    """`absmax`, with the range of each group clipped where that lowers the group's own output error.

    The error of a group is d H_g d^T, with d its rounding error and H_g its block of the Hessian
    [K / group_size, group_size, group_size], or of its diagonal [K]; the grid contains no clipping, so the
    result is never worse than `absmax` by this measure.

    """
    best = torch.empty(len(W), W.shape[1] // group_size)
    for group in range(best.shape[1]):
        columns = slice(group * group_size, (group + 1) * group_size)
        seen = hessian[columns] if hessian.ndim == 1 else hessian[group]
        for start in range(0, len(W), ROWS):
            rows = slice(start, start + ROWS)
            best[rows, group] = _search_group(W[rows, columns].contiguous(), seen, shrinks)
    return best


def _search_group(W: torch.Tensor, hessian: torch.Tensor, shrinks: Sequence[float]) -> torch.Tensor:
    limit = W.abs().amax(1) / 7
    best, lowest = torch.empty_like(limit), torch.full_like(limit, torch.inf)
    for shrink in shrinks:
        scales = exact(limit * shrink)
        delta = nearest(W, scales[:, None]).mul_(scales[:, None]).sub_(W)
        error = delta.square_() @ hessian if hessian.ndim == 1 else (delta @ hessian).mul_(delta).sum(1)
        better = error < lowest
        best, lowest = torch.where(better, scales, best), torch.where(better, error, lowest)
    return best


def diagonal_blocks(hessian: torch.Tensor, group_size: int) -> torch.Tensor:
    """Of each group of columns its own block [K / group_size, group_size, group_size] of [K, K]."""
    groups = torch.arange(len(hessian) // group_size)
    return hessian.reshape(len(groups), group_size, len(groups), group_size)[groups, :, groups]


def encode(W: torch.Tensor, scales: torch.Tensor, group_size: int) -> Int4:
    """Rounds every weight to the nearest code. W [N, K], scales [N, K / group_size]."""
    return pack(nearest(grouped(W, group_size), scales[..., None]).reshape(W.shape), scales, group_size)


def pack(codes: torch.Tensor, scales: torch.Tensor, group_size: int) -> Int4:
    """Signed codes -8..7 [N, K] and scales in the canonical form: codes 0..15 about a zero point of 8."""
    unsigned = (codes + 8).to(torch.uint8).contiguous()
    return Int4(unsigned.numpy(), scales.numpy().astype(np.float16), group_size)


def nearest(W: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """The nearest code in -8..7, as float."""
    return (W / scales).round_().clamp_(-8, 7)


def exact(scales: torch.Tensor) -> torch.Tensor:
    """The nearest scales that float16 and bfloat16 both hold exactly."""
    return scales.bfloat16().float().clamp(SMALLEST, LARGEST)


def grouped(W: torch.Tensor, group_size: int) -> torch.Tensor:
    """[N, K] -> [N, K / group_size, group_size]."""
    return W.reshape(W.shape[0], -1, group_size)
