"""GPTQ on matrices worked out by hand, against the textbook form of its update, and against rounding."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from engines.errors import UserError
from quantize.gptq import gptq, inverse_factor
from quantize.rtn import rtn
from quantize.scales import encode, search


def correlated(tokens: int, columns: int, seed: int) -> torch.Tensor:
    """Inputs that live mostly in a few directions, as activations do."""
    mix = torch.randn(columns, columns, generator=torch.Generator().manual_seed(1234))
    mix = mix * torch.logspace(0, -2, columns)[:, None]
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(tokens, columns, generator=generator)
    return torch.randn(tokens, columns, generator=generator) @ mix / columns**0.5 + 0.05 * noise


def weights(rows: int, columns: int) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(99)) * 0.05


def textbook(
    W: torch.Tensor, hessian: torch.Tensor, group_size: int, damping: float, act_order: bool
) -> np.ndarray:
    """Optimal Brain Quantization in a fixed order: the inverse is updated explicitly after every column."""
    diagonal = hessian.diagonal().double()
    scales = search(W, group_size, hessian.diagonal()).double()
    columns = list(range(len(hessian)))
    if act_order:
        columns.sort(key=lambda column: -float(diagonal[column]))
    inverse = torch.linalg.inv(hessian.double() + damping * diagonal.mean() * torch.eye(len(hessian)))
    rest, codes = W.double().clone(), torch.zeros(W.shape, dtype=torch.float64)
    for j in columns:
        step = scales[:, j // group_size]
        codes[:, j] = (rest[:, j] / step).round().clamp(-8, 7)
        error = (rest[:, j] - codes[:, j] * step) / inverse[j, j]
        rest -= error[:, None] * inverse[j][None]
        inverse = inverse - inverse[:, [j]] @ inverse[[j]] / inverse[j, j]
    return (codes + 8).to(torch.uint8).numpy()


@pytest.mark.parametrize(
    ("hessian", "act_order", "codes"),
    [
        # Column 0 rounds 2.4 to 2; its error 0.4 moves column 1 by 0.4 * H01 / H11 = 0.2, to 4.65: 5.
        ([[2.0, 1.0, 0.0], [1.0, 2.0, 0.0], [0.0, 0.0, 50.0]], False, [10, 13, 15]),
        # Uncorrelated columns round to nearest.
        ([[2.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 50.0]], False, [10, 12, 15]),
        # Column 1 has the larger diagonal and goes first: 4.45 becomes 4, and 2.4 + 0.45 * 1 / 2 = 2.625: 3.
        ([[2.0, 1.0, 0.0], [1.0, 4.0, 0.0], [0.0, 0.0, 50.0]], True, [11, 12, 15]),
        # The same from left to right: 2.4 becomes 2, and 4.45 + 0.4 * 1 / 4 = 4.55: 5.
        ([[2.0, 1.0, 0.0], [1.0, 4.0, 0.0], [0.0, 0.0, 50.0]], False, [10, 13, 15]),
    ],
)
def test_hand_worked_matrix(hessian: list[list[float]], act_order: bool, codes: list[int]) -> None:
    weight = gptq(
        torch.tensor([[2.4, 4.45, 7.0]]), torch.tensor(hessian), 3, damping=0.0, act_order=act_order
    )
    assert weight.scales.tolist() == [[1.0]]
    assert weight.codes.tolist() == [codes]


def test_inverse_factor() -> None:
    X = correlated(400, 40, seed=0)
    H = X.T @ X
    U = inverse_factor(H, 0.01)
    assert (U.tril(-1) == 0).all()
    damped = H.double() + 0.01 * H.double().diagonal().mean() * torch.eye(40)
    torch.testing.assert_close(U.double().T @ U.double(), torch.linalg.inv(damped), rtol=1e-4, atol=1e-3)


def test_inverse_factor_goes_to_float64_before_it_damps_more() -> None:
    generator = torch.Generator().manual_seed(0)
    X = torch.randint(-9, 10, (20, 256), generator=generator).float()
    H, damping = (
        X.T @ X,
        3e-8,
    )  # whole numbers: of rank 20 exactly; float32 cannot see this damping
    mean = float(H.diagonal().mean())
    assert torch.linalg.cholesky_ex(H + damping * mean * torch.eye(256)).info
    U = inverse_factor(H, damping).double()
    damped = H.double() + damping * mean * torch.eye(256)
    assert ((U @ damped @ U.T) - torch.eye(256)).abs().max() < 0.1


@pytest.mark.parametrize("act_order", [True, False])
def test_blocked_updates_equal_the_textbook(act_order: bool) -> None:
    W, X = weights(16, 320), correlated(2000, 320, seed=0)  # two and a half blocks of columns
    H = X.T @ X / len(X)
    found = gptq(W, H, 64, damping=0.01, act_order=act_order).codes
    # float32 against float64: a tie may fall the other way and the columns after it follow.
    assert (found == textbook(W, H, 64, 0.01, act_order)).mean() > 0.999


@pytest.mark.parametrize("group_size", [32, 64, 128])
def test_output_error_is_below_round_to_nearest(group_size: int) -> None:
    W, X, unseen = weights(128, 256), correlated(2048, 256, seed=0), correlated(2048, 256, seed=1)

    def error(weight: np.ndarray) -> float:
        return float((unseen @ (torch.from_numpy(weight) - W).T).norm() / (unseen @ W.T).norm())

    plain = error(rtn(W, group_size).dequantize())
    assert error(gptq(W, X.T @ X, group_size).dequantize()) < 0.6 * plain


def test_columns_without_input_round_to_nearest() -> None:
    W, X = weights(16, 64), correlated(512, 64, seed=0)
    dead = torch.tensor([3, 40, 63])
    X[:, dead] = 0
    H = X.T @ X / len(X)
    nearest = encode(W, search(W, 32, H.diagonal()), 32)
    assert (gptq(W, H, 32).codes[:, dead] == nearest.codes[:, dead]).all()


def test_no_input_at_all_rounds_to_nearest() -> None:
    W = weights(16, 64)
    assert (gptq(W, torch.zeros(64, 64), 32).codes == rtn(W, 32).codes).all()


def test_fewer_samples_than_columns() -> None:
    W, X = weights(32, 128), correlated(20, 128, seed=0)
    weight = torch.from_numpy(gptq(W, X.T @ X / 20, 64).dequantize())
    plain = torch.from_numpy(rtn(W, 64).dequantize())
    assert (X @ (weight - W).T).norm() < (X @ (plain - W).T).norm()


def test_an_indefinite_hessian_is_refused() -> None:
    hessian = torch.diag(torch.tensor([1.0, 1.0, -100.0, 1.0]))
    with pytest.raises(UserError, match="not positive definite"):
        gptq(weights(2, 4), hessian, 4)


def test_activations_that_overflowed_are_refused() -> None:
    hessian = torch.eye(4)
    hessian[0, 0] = torch.inf
    with pytest.raises(UserError, match="not finite"):
        gptq(weights(2, 4), hessian, 4)
