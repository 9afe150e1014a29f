"""AWQ (Lin et al. 2023, arXiv:2306.00978): scale up the channels with large activations, then clip.

Multiplying a column of W by s and dividing its input by s changes nothing in exact arithmetic, but gives that
column a finer grid. The division is folded into whatever makes the input (a norm or an earlier linear), so
the checkpoint keeps its standard form.

"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from engines.int4 import Int4
from quantize.scales import SHRINKS, encode, search

RATIOS = tuple(step / 20 for step in range(20))
COARSE = SHRINKS[::4]


def channel_scales(
    weights: Sequence[torch.Tensor], hessian: torch.Tensor, magnitude: torch.Tensor, group_size: int
) -> torch.Tensor:
    """The scales magnitude^ratio [K] under which rounding hurts the outputs least.

    Args:
        weights: of the linears that share the input, each [N, K].
        hessian: X^T X of the input [K, K]; the output error of W + D is exactly tr(D H D^T).
        magnitude: mean |x| of each input channel [K].

    Each ratio is tried with the clipping that suits it, on a coarse grid. Ratio 0 is no scaling. Scales are
    normalised so that the largest times the smallest is 1.
    """
    W = torch.cat(list(weights))
    # A channel nobody feeds would pull the smallest scale to zero.
    magnitude = magnitude.clamp(min=1e-4 * float(magnitude.max()))
    best, lowest = torch.ones_like(magnitude), torch.inf
    for ratio in RATIOS:
        scales = magnitude**ratio
        scales = scales / (scales.max() * scales.min()).sqrt()
        if not torch.isfinite(scales).all():
            continue
        scaled, seen = W * scales, hessian / scales / scales[:, None]
        codes = encode(scaled, search(scaled, group_size, seen, COARSE), group_size)
        error = float(output_error(torch.from_numpy(codes.dequantize()) - scaled, seen))
        if error < lowest:
            best, lowest = scales, error
    return best


def clipped(W: torch.Tensor, hessian: torch.Tensor, group_size: int) -> Int4:
    """Quantises the scaled W [N, K], each group clipped where that lowers its output error."""
    return encode(W, search(W, group_size, hessian), group_size)


def fold_into_norm(norm: torch.Tensor, scales: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The norm's weight divided by the scales, in its own dtype, and the scales this division really has.

    Rounding the quotient to 16 bits would otherwise leave an error in every channel; so the linears get the
    ratio of the old weight to the rounded new one.

    """
    folded = (norm.float() / scales).to(norm.dtype)
    usable = (folded != 0) & torch.isfinite(folded)
    folded = torch.where(usable, folded, norm)
    return folded, torch.where(usable, norm.float() / folded.float(), torch.ones_like(scales))


def output_error(delta: torch.Tensor, hessian: torch.Tensor) -> torch.Tensor:
    """Sum of squares of X delta^T over all inputs X, from hessian = X^T X. delta [N, K]."""
    return ((delta @ hessian) * delta).sum()
