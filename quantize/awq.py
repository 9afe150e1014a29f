"""AWQ (Lin et al. 2023, arXiv:2306.00978): scale up the channels with large activations.

Multiplying a column of W by s and dividing its input by s changes nothing in exact arithmetic, but gives that
column a finer grid. The division is folded into whatever makes the input (a norm or an earlier linear), so
the checkpoint keeps its standard form. AWQ itself then rounds to nearest; here GPTQ rounds what was scaled.

"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from engines.int4 import Int4
from quantize.scales import SHRINKS, diagonal_blocks, encode, exact, search

RATIOS = tuple(step / 20 for step in range(20))
COARSE = SHRINKS[::4]
ROWS = 256  # of a weight: enough to rank the ratios by


def channel_scales(
    W: torch.Tensor, hessian: torch.Tensor, magnitude: torch.Tensor, group_size: int
) -> torch.Tensor:
    """The scales magnitude^ratio [K] under which rounding hurts the outputs least.

    Args:
        W: of the linears that share the input, one below the other [N, K].
        hessian: X^T X of the input [K, K]; the output error of W + D is exactly tr(D H D^T).
        magnitude: mean |x| of each input channel [K].

    Each ratio is tried with the clipping that suits it, on a coarse grid and a sample of the rows. Ratio 0 is
    no scaling. Scales are normalised so that the largest times the smallest is 1.
    """
    W = sampled(W)
    # A channel nobody feeds would pull the smallest scale to zero.
    magnitude = magnitude.clamp(min=1e-4 * float(magnitude.max()))
    best, lowest = torch.ones_like(magnitude), torch.inf
    for ratio in RATIOS:
        scales = magnitude**ratio
        scales = scales / (scales.max() * scales.min()).sqrt()
        if not torch.isfinite(scales).all():
            continue
        weight = clipped(W, scales, hessian, group_size, COARSE)
        error = float(output_error(torch.from_numpy(weight.dequantize()) / scales - W, hessian))
        if error < lowest:
            best, lowest = scales, error
    return best


def clipped(
    W: torch.Tensor,
    scales: torch.Tensor,
    hessian: torch.Tensor,
    group_size: int,
    shrinks: Sequence[float] = SHRINKS,
) -> Int4:
    """Quantises W [N, K] with its columns scaled, each group clipped where that lowers its output error."""
    scaled, divisors = W * scales, scales.reshape(-1, 1, group_size)
    blocks = diagonal_blocks(hessian, group_size) / divisors / divisors.mT
    return encode(scaled, search(scaled, group_size, blocks, shrinks), group_size)


def fold_into_norm(norm: torch.Tensor, scales: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The norm's weight divided by the scales, in its own dtype, and the scales this division really has.

    Rounding the quotient to 16 bits would otherwise leave an error in every channel; so the linears get the
    ratio of the old weight to the rounded new one.

    """
    folded = (norm.float() / scales).to(norm.dtype)
    usable = (folded != 0) & torch.isfinite(folded)
    folded = torch.where(usable, folded, norm)
    return folded, torch.where(usable, norm.float() / folded.float(), torch.ones_like(scales))


def fold_into_linear(weight: Int4, scales: torch.Tensor) -> Int4:
    """The weight with its rows divided by the scales: in general the same codes.

    Its own scales are rounded anew, by no more than 1 part in 256: little beside the rounding to 4 bits.
    """
    divided = torch.from_numpy(weight.dequantize()) / scales[:, None]
    return encode(
        divided, exact(torch.from_numpy(weight.scales).float() / scales[:, None]), weight.group_size
    )


def output_error(delta: torch.Tensor, hessian: torch.Tensor) -> torch.Tensor:
    """Sum of squares of X delta^T over all inputs X, from hessian = X^T X. delta [N, K]."""
    return ((delta @ hessian) * delta).sum()


def sampled(W: torch.Tensor) -> torch.Tensor:
    """ROWS of the rows of W [N, K] or a few fewer, evenly spread."""
    return W[:: -(-len(W) // ROWS)]
