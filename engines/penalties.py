"""What a request takes off or adds to the logits of tokens: repeated ones, and those it names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from engines.errors import UserError


@dataclass(frozen=True)
class Penalties:
    """presence and frequency are taken off tokens said, once and for each time (OpenAI's); repetition divides
    the logits of tokens read or said, or multiplies them below zero (CTRL, arXiv:1909.05858); bias is added.
    """

    presence: float = 0.0
    frequency: float = 0.0
    repetition: float = 1.0
    bias: Mapping[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        limits = {
            "presence_penalty": (self.presence, -2, 2),
            "frequency_penalty": (self.frequency, -2, 2),
            "repetition_penalty": (self.repetition, 0.01, 100),
        }
        for name, (value, low, high) in limits.items():
            if not low <= value <= high:
                raise UserError(f"{name} is {value}: expected {low} to {high}")

    def __bool__(self) -> bool:
        """Whether anything changes at all."""
        return self.repetition != 1 or bool(self.presence or self.frequency or self.bias)

    def apply(
        self, logits: NDArray[np.float32], read: NDArray[np.int64], said: Sequence[int]
    ) -> NDArray[np.float32]:
        """A changed copy of logits [V], after a prompt of tokens `read` and tokens `said` since."""
        logits = logits.copy()
        if self.repetition != 1:
            seen = np.union1d(read, np.array(said, np.int64))
            factors = np.where(logits[seen] > 0, 1 / self.repetition, self.repetition)
            logits[seen] *= factors.astype(np.float32)
        tokens, counts = np.unique(np.array(said, np.int64), return_counts=True)
        logits[tokens] -= (self.presence + self.frequency * counts).astype(np.float32)
        for token, bias in self.bias.items():
            logits[token] += np.float32(bias)
        return logits
