"""Chooses the next token: greedy, or sampled after temperature, top-k, top-p and min-p."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engines.errors import UserError


@dataclass(frozen=True)
class Sampling:
    """temperature 0 is greedy; top_k 0, top_p 1 and min_p 0 cut nothing. Equal seeds give equal tokens."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        limits = {
            "temperature": (0 <= self.temperature < float("inf"), "at least 0"),
            "top_p": (0 < self.top_p <= 1, "above 0, at most 1"),
            "top_k": (self.top_k >= 0, "at least 0"),
            "min_p": (0 <= self.min_p <= 1, "between 0 and 1"),
            "seed": (self.seed >= 0, "at least 0"),
        }
        for name, (holds, expected) in limits.items():
            if not holds:
                raise UserError(f"{name} is {getattr(self, name)}: expected {expected}")


def candidates(
    logits: NDArray[np.float32], sampling: Sampling
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Token ids that may follow, most likely first, and their probabilities, for logits [V] and a
    temperature above 0.

    Temperature, top-k, top-p (nucleus sampling, arXiv:1904.09751) and min-p (arXiv:2407.01082), in
    transformers' order; each keeps a head of the list.
    """
    order = _descending(logits, sampling.top_k or len(logits))
    scores = logits[order].astype(np.float64)
    probabilities = np.exp((scores - scores[0]) / sampling.temperature)
    probabilities /= probabilities.sum()
    if sampling.top_p < 1:
        before = np.cumsum(probabilities) - probabilities
        probabilities = probabilities[before < sampling.top_p]
    probabilities = probabilities[probabilities >= sampling.min_p * probabilities[0]]
    return order[: len(probabilities)], probabilities / probabilities.sum()


def _descending(logits: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """Ids of the `count` largest logits, largest first."""
    if count < len(logits):  # sorting a large vocabulary whole would cost as much as computing a small model
        head = np.argpartition(-logits, count)[:count]
        return head[np.argsort(-logits[head])]
    return np.argsort(-logits)


def next_token(logits: NDArray[np.float32], sampling: Sampling, random: np.random.Generator) -> int:
    """The id of the token that follows, for logits [V]."""
    if sampling.temperature == 0:
        return int(logits.argmax())
    tokens, probabilities = candidates(logits, sampling)
    chosen = int(np.searchsorted(np.cumsum(probabilities), random.random(), side="right"))
    return int(tokens[min(chosen, len(tokens) - 1)])
