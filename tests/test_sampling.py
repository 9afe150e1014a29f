"""Sampling against transformers' own logits processors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from engines.errors import UserError
from engines.sampling import Sampling, candidates, next_token


def random_logits(seed: int, size: int = 200) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(scale=3, size=size).astype(np.float32)


def transformers_probabilities(logits: NDArray[np.float32], sampling: Sampling) -> NDArray[np.float64]:
    """What transformers' generate would draw from, [V]."""
    processors = LogitsProcessorList([TemperatureLogitsWarper(sampling.temperature)])
    if sampling.top_k:
        processors.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        processors.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p:
        processors.append(MinPLogitsWarper(sampling.min_p))
    scores = processors(torch.zeros((1, 1), dtype=torch.long), torch.from_numpy(logits)[None].double())
    return np.asarray(scores.softmax(-1)[0])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(1.0),
        Sampling(0.3),
        Sampling(2.5),
        Sampling(1.0, top_k=1),
        Sampling(0.7, top_k=20),
        Sampling(0.7, top_k=1000),
        Sampling(1.0, top_p=0.5),
        Sampling(1.3, top_p=0.999),
        Sampling(1.0, top_p=1e-6),
        Sampling(1.0, min_p=0.1),
        Sampling(1.0, min_p=1.0),
        Sampling(0.7, top_k=20, top_p=0.8),
        Sampling(1.5, top_k=50, top_p=0.9, min_p=0.05),
    ],
)
def test_candidates_equal_transformers(sampling: Sampling, seed: int) -> None:
    logits = random_logits(seed)
    tokens, probabilities = candidates(logits, sampling)
    found = np.zeros(len(logits))
    found[tokens] = probabilities
    expected = transformers_probabilities(logits, sampling)
    assert set(tokens) == set(np.flatnonzero(expected))
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("spread", [0.5, 3.0, 10.0])  # from a flat distribution to one likely token
@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(1.0, top_p=0.9),
        Sampling(1.0, top_p=0.9999),
        Sampling(1.0, min_p=0.02),
        Sampling(1.0, min_p=1e-4),
        Sampling(1.0, top_p=0.95, min_p=0.3),
        Sampling(1.0, top_k=2000, top_p=0.8),
    ],
)
def test_candidates_of_a_large_vocabulary_equal_transformers(sampling: Sampling, spread: float) -> None:
    logits = random_logits(4, 30_000) * np.float32(spread / 3)
    tokens, probabilities = candidates(logits, sampling)
    found = np.zeros(len(logits))
    found[tokens] = probabilities
    np.testing.assert_allclose(found, transformers_probabilities(logits, sampling), rtol=1e-5, atol=1e-7)
    assert (np.diff(probabilities) <= 0).all()


@pytest.mark.parametrize(
    "sampling", [Sampling(1.0, top_k=12), Sampling(1.5), Sampling(1.5, top_p=0.9), Sampling(1.0, min_p=0.02)]
)
def test_draws_follow_the_probabilities(sampling: Sampling) -> None:
    random, logits = np.random.default_rng(5), random_logits(1, 40)
    expected = transformers_probabilities(logits, sampling)
    draws = np.bincount([next_token(logits, sampling, random) for _ in range(3000)], minlength=40)
    often = expected > 0.003  # the rest together, as the test wants five or more of each
    assert draws[expected == 0].sum() == 0
    counts, shares = (np.append(x[often], x[~often].sum()) for x in (draws, expected))
    assert stats.chisquare(counts[shares > 0], 3000 * shares[shares > 0]).pvalue > 0.01


def test_temperature_zero_is_greedy() -> None:
    logits = random_logits(0)
    assert next_token(logits, Sampling(), np.random.default_rng()) == logits.argmax()


def test_a_tiny_temperature_does_not_overflow() -> None:
    logits = random_logits(0)
    assert next_token(logits, Sampling(1e-30), np.random.default_rng(0)) == logits.argmax()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_k", -1),
        ("min_p", -0.1),
        ("min_p", 2.0),
        ("seed", -1),
    ],
)
def test_settings_out_of_range_are_refused(field: str, value: float) -> None:
    with pytest.raises(UserError, match=rf"^{field} is {value}: expected"):
        Sampling(**{field: value})  # type: ignore[arg-type]
