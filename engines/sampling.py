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


GREEDY = Sampling()

HEAD = 1024  # the likeliest tokens, which nearly always hold all that top-p and min-p leave


def candidates(
    logits: NDArray[np.float32], sampling: Sampling
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Token ids that may follow, most likely first, and their probabilities, for logits [V] and a
    temperature above 0.

    Temperature, top-k, top-p (nucleus sampling, arXiv:1904.09751) and min-p (arXiv:2407.01082), in
    transformers' order; each keeps a head of the list. Only where HEAD tokens do not settle where it ends is
    the whole vocabulary sorted: that would cost as much as half a step of the model.
    """
    total = 0.0 if sampling.top_k else float(_weights(logits, sampling.temperature).sum(dtype=np.float64))
    for count in (sampling.top_k or HEAD, 16 * HEAD, len(logits)):
        order = descending(logits, count)
        scores = logits[order].astype(np.float64)
        weights = np.exp((scores - scores[0]) / sampling.temperature)
        mass = np.cumsum(weights)
        total = total or mass[-1]
        if sampling.top_k or mass[-1] > sampling.top_p * total or weights[-1] < sampling.min_p:
            break
    if sampling.top_p < 1:
        weights = weights[mass - weights < sampling.top_p * total]
    weights = weights[weights >= sampling.min_p]
    return order[: len(weights)], weights / weights.sum()


def next_token(logits: NDArray[np.float32], sampling: Sampling, random: np.random.Generator) -> int:
    """The id of the token that follows, for logits [V]. Takes one random number unless greedy."""
    if sampling.temperature == 0:
        return int(logits.argmax())
    if sampling.top_k or sampling.top_p < 1 or sampling.min_p:
        tokens, weights = candidates(logits, sampling)
        return int(tokens[_draw(weights, random)])
    return _draw(_weights(logits, sampling.temperature), random)  # nothing is cut, so nothing needs sorting


def _weights(logits: NDArray[np.float32], temperature: float) -> NDArray[np.float32]:
    """Probabilities times a constant, the largest 1. The floor keeps a tiny temperature from overflowing."""
    weights: NDArray[np.float32] = np.exp((logits - logits.max()) / np.float32(max(temperature, 1e-30)))
    return weights


def _draw(weights: NDArray[np.floating], random: np.random.Generator) -> int:
    """An index, each as likely as its weight."""
    mass = np.cumsum(weights, dtype=np.float64)
    return int(np.searchsorted(mass, random.random() * mass[-1], side="right"))


def descending(logits: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """Ids of the `count` largest logits, largest first."""
    if count < len(logits):
        head = np.argpartition(-logits, count)[:count]
        return head[np.argsort(-logits[head])]
    return np.argsort(-logits)
