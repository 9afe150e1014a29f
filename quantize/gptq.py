"""GPTQ (Frantar et al. 2022, arXiv:2210.17323): round a column, let those still to come absorb the error.

The scales of all groups are set beforehand from the original weights ("static groups"). Columns can then be
processed in order of falling activation energy ("act-order") while each keeps the scale of the group it lies
in, so the result has contiguous groups and needs no g_idx.

"""

from __future__ import annotations

import torch

from engines.errors import UserError
from engines.int4 import Int4
from quantize.scales import nearest, pack, search

BLOCK = 128  # columns whose updates are applied to the rest in one matrix product


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
    N, K = W.shape
    diagonal = hessian.diagonal()
    # Later columns make up for errors that are correlated with them, so only the diagonal sets the scales.
    scales = search(W, group_size, torch.diag(diagonal))
    order = torch.argsort(diagonal, descending=True, stable=True) if act_order else torch.arange(K)
    U = inverse_factor(hessian[order][:, order], damping).float()
    step = scales.T[order // group_size].contiguous()  # scale of each column, in processing order [K, N]
    rest = W.float().T[order].contiguous()  # columns as rows: what remains to be represented
    codes = torch.empty_like(rest)
    for start in range(0, K, BLOCK):
        end = min(start + BLOCK, K)
        errors = torch.empty(end - start, N)
        for j in range(start, end):
            codes[j] = nearest(rest[j], step[j])
            error = errors[j - start]
            error.copy_((rest[j] - codes[j] * step[j]) / U[j, j])
            rest[j + 1 : end].addr_(U[j, j + 1 : end], error, alpha=-1)
        rest[end:].addmm_(U[start:end, end:].T, errors, alpha=-1)
    return pack(codes[torch.argsort(order)].T.contiguous(), scales, group_size)


def inverse_factor(hessian: torch.Tensor, damping: float) -> torch.Tensor:
    """Upper triangular U with U^T U = (H + damping)^-1, in float64.

    Row j of U holds how the error of column j spreads over the columns after it. A column without any input
    has only its damping on the diagonal: it is rounded to nearest and neither gives nor takes an error.

    """
    if not torch.isfinite(hessian).all():
        raise UserError("the activations of a layer are not finite: check the checkpoint's weights")
    # With J the reversal, J H J = L L^T gives H = R R^T for the upper R = J L J, and U = R^-1 = J L^-1 J.
    H, eye = hessian.double().flip(0, 1), torch.eye(len(hessian), dtype=torch.float64)
    mean = float(H.diagonal().mean()) or 1.0
    for heavier in (1, 10, 100, 1000):
        L, failed = torch.linalg.cholesky_ex(H + damping * heavier * mean * eye)
        if not failed:
            inverse: torch.Tensor = torch.linalg.solve_triangular(L, eye, upper=False)
            return inverse.flip(0, 1)
    raise UserError(
        f"the Hessian of a layer is not positive definite, even damped by {damping * heavier:g} of its mean "
        "diagonal: calibrate on more samples or with a larger damping"
    )
