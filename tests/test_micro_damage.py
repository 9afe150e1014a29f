"""The embedded checkpoint has learned its tasks and shows damage: rounding to nearest loses answers, 8 bits
lose none, and GPTQ and AWQ keep 98 % of the score at a size at which rounding to nearest does not.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from scipy.stats import binomtest
from tokenizers import Tokenizer

from bench.micro.tasks import TASKS, make_item
from bench.micro.tokenizer import MicroTokens

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.usefixtures("one_thread")

from bench.micro.evaluate import score  # noqa: E402
from quantize.pipeline import eight_bits  # noqa: E402
from tests.benchmarks.int4_quality import (  # noqa: E402
    Calibrated,
    Quality,
    Questions,
    as_quantize_does,
    asymmetric,
    symmetric,
)

ITEMS, GROUP = 1500, 32


@pytest.fixture(scope="module")
def tokens(micro_checkpoint: Path) -> MicroTokens:
    return MicroTokens(Tokenizer.from_file(str(micro_checkpoint / "tokenizer.json")))


@pytest.fixture(scope="module")
def questions() -> Questions:
    return Questions(ITEMS)


@pytest.fixture(scope="module")
def found(questions: Questions) -> dict[str, Quality]:
    """The same held-out items, asked of every variant."""
    calibrated = Calibrated()
    sizes = {"rtn": ("rtn", GROUP), "gptq": ("gptq", GROUP), "awq": ("awq", GROUP), "coarse": ("rtn", 128)}
    rounded = {
        name: calibrated.rounded(as_quantize_does(calibrated, *chosen)) for name, chosen in sizes.items()
    }
    rounded["8 bits"] = {
        f"{name}.weight": torch.from_numpy(weight.dequantize())
        for index in range(calibrated.source.config.text.num_hidden_layers)
        for name, weight in eight_bits(calibrated.source, index, 128).items()
    }
    return {name: questions.put_to(tensors) for name, tensors in rounded.items()}


@pytest.mark.parametrize("task", TASKS)
def test_every_task_is_learned(questions: Questions, tokens: MicroTokens, task: str) -> None:
    rng = random.Random(f"learned:{task}")
    hits = score(questions.model, tokens, [make_item(task, rng, "test") for _ in range(100)])
    accuracy = sum(hits) / len(hits)
    assert accuracy >= 0.8 or accuracy >= TASKS[task].guess + 0.4


def flips(before: torch.Tensor, after: torch.Tensor) -> tuple[int, int, float]:
    """Answers lost, answers won, exact two-sided p (McNemar)."""
    lost, won = int((before & ~after).sum()), int((after & ~before).sum())
    return lost, won, binomtest(lost, lost + won).pvalue if lost + won else 1.0


@pytest.mark.parametrize("name", ["rtn", "coarse"])
def test_rounding_to_nearest_is_measurably_below(found: dict[str, Quality], name: str) -> None:
    """Shown with 95 % confidence to keep less than 98 %."""
    assert found[name].recovered.high < 0.98


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_98_percent_are_kept(found: dict[str, Quality], method: str) -> None:
    """And more than by rounding to nearest, seen on the same items."""
    assert found[method].recovered.estimate >= 0.98
    lost, won, p = flips(found["rtn"].right, found[method].right)
    assert won > lost
    assert p < 0.01


def test_8_bits_lose_none(questions: Questions, found: dict[str, Quality]) -> None:
    lost, won, p = flips(questions.right, found["8 bits"].right)
    assert p > 0.05
    assert abs(lost - won) <= 3
    assert found["8 bits"].kl < found["awq"].kl / 20


def lopsided() -> torch.Tensor:
    """Groups that lie more above zero than below."""
    return torch.randn(16, 64, generator=torch.Generator().manual_seed(0)).abs() - 0.2


def test_codes_lie_on_their_grid_whatever_rounds_them() -> None:
    """By hand: code * scale + offset with codes of -8..7, the offset a whole number of scales."""
    W, diagonal = lopsided(), torch.ones(64)
    for grid in (symmetric(W, diagonal, 32), asymmetric(W, diagonal, 32)):
        assert torch.equal(grid.offsets / grid.scales, (grid.offsets / grid.scales).round())
        scales, offsets = (x.repeat_interleave(32, dim=1) for x in (grid.scales, grid.offsets))
        for rounded in (grid.rtn(W, torch.eye(64)), grid.gptq(W, torch.eye(64))):
            codes = (rounded - offsets) / scales
            assert torch.allclose(codes, codes.round(), atol=1e-3)
            assert codes.round().min() >= -8
            assert codes.round().max() <= 7


def test_zero_points_fit_a_lopsided_group_better() -> None:
    W, diagonal = lopsided(), torch.ones(64)
    even, lifted = (
        float((find(W, diagonal, 32).rtn(W, torch.eye(64)) - W).square().sum())
        for find in (symmetric, asymmetric)
    )
    assert lifted < 0.6 * even
