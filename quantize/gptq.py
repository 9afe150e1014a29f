"""GPTQ (Frantar et al. 2022, arXiv:2210.17323): round a column, let those still to come absorb the error.

The scales of all groups are set beforehand from the original weights ("static groups"). Columns can then be
processed in order of falling activation energy ("act-order") while each keeps the scale of the group it lies
in, so the result has contiguous groups and needs no g_idx.

"""

from __future__ import annotations

import torch
from scipy.linalg import lapack

from engines.errors import UserError
from engines.int4 import Int4
from quantize.scales import nearest, pack, search

BLOCK = 128  # columns that take up the errors of all before them in one matrix product


def gptq(
    W: torch.Tensor, hessian: torch.Tensor, group_size: int, *, damping: float = 0.01, act_order: bool = True
) -> Int4:
    """Quantises W [N, K] to lessen the error of its outputs.

    Args:
        hessian: X^T X of the inputs [K, K], at any scale.
        damping: share of the mean diagonal added to the diagonal.
        act_order: process columns by falling diagonal instead of left to right.

    Raises UserError when the Hessian is not finite or stays indefinite under heavy damping.
    """
    # Later columns make up for errors that are correlated with them, so only the diagonal sets the scales.
    scales = search(W, group_size, hessian.diagonal())
    return pack(compensated(W, hessian, scales, damping=damping, act_order=act_order), scales, group_size)


def compensated(
    W: torch.Tensor, hessian: torch.Tensor, scales: torch.Tensor, *, damping: float, act_order: bool = True
) -> torch.Tensor:
    """Codes -8..7 [N, K], as float, for scales [N, K / group_size] that are given."""
    K = W.shape[1]
    diagonal, group_size = hessian.diagonal(), K // scales.shape[1]
    order = torch.argsort(diagonal, descending=True, stable=True) if act_order else torch.arange(K)
    U = inverse_factor(hessian[order[:, None], order], damping)
    steps, groups = scales.T.contiguous(), (order // group_size).tolist()
    rest = W.float().T[order]  # columns as rows [K, N]: what remains to be represented, then the codes
    errors = torch.empty_like(rest)
    for start in range(0, K, BLOCK):
        end = min(start + BLOCK, K)
        rest[start:end].addmm_(U[:start, start:end].T, errors[:start], alpha=-1)
        for j in range(start, end):
            column, step = rest[j], steps[groups[j]]
            column.addmv_(errors[start:j].T, U[start:j, j], alpha=-1)
            codes = nearest(column, step)
            torch.addcmul(column, codes, step, value=-1, out=errors[j]).div_(U[j, j])
            column.copy_(codes)
    return rest[torch.argsort(order)].T


def inverse_factor(hessian: torch.Tensor, damping: float) -> torch.Tensor:
    """Upper triangular U with U^T U = (H + damping)^-1; in float64 where float32 does not do.

    Row j of U holds how the error of column j spreads over the columns after it. A column without any input
    has only its damping on the diagonal: it is rounded to nearest and neither gives nor takes an error.

    """
    if not torch.isfinite(hessian).all():
        raise UserError("the activations of a layer are not finite: check the checkpoint's weights")
    mean = float(hessian.diagonal().mean()) or 1.0
    # With J the reversal, J H J = L L^T gives H = R R^T for the upper R = J L J, and U = R^-1 = J L^-1 J.
    for heavier in (1, 10, 100, 1000):
        for potrf, trtri, dtype in (
            (lapack.spotrf, lapack.strtri, torch.float32),
            (lapack.dpotrf, lapack.dtrtri, torch.float64),
        ):
            H = hessian.to(dtype).flip(0, 1)
            H.diagonal().add_(damping * heavier * mean)
            L, failed = potrf(H.numpy().T, lower=True, overwrite_a=True)
            if not failed:
                inverse, _ = trtri(L, lower=True, overwrite_c=True)
                return torch.from_numpy(inverse).flip(0, 1).float().contiguous()
    raise UserError(
        f"the Hessian of a layer is not positive definite, even damped by {damping * heavier:g} of its mean "
        "diagonal: calibrate on more samples or with a larger damping"
    )
