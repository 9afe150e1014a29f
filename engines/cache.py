"""What a session remembers between calls, and what it refuses to begin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.config import ModelConfig
from engines.errors import UserError
from engines.processor import Inputs


@dataclass(eq=False)
class Cache:
    """What a session remembers of B sequences.

    lengths int64 [B]: tokens cached; positions int64 [B]: rotary position of each sequence's next token;
    capacity: the most tokens a sequence may reach; state: the session's own tensors.
    """

    lengths: NDArray[np.int64]
    positions: NDArray[np.int64]
    capacity: int
    state: Any

    def check_decode(self, tokens: NDArray[np.int64]) -> None:
        """UserError unless there is one token for each sequence and room for it."""
        if tokens.shape != self.lengths.shape:
            raise UserError(f"{tokens.shape} tokens for {len(self.lengths)} cached sequences: give one each")
        if self.lengths.max() >= self.capacity:
            raise UserError(f"the cache is full at {self.capacity} tokens: prefill with a larger capacity")

    def advance(self) -> None:
        """Count one more token in every sequence."""
        self.lengths += 1
        self.positions += 1


def check_prefill(prompts: Sequence[Inputs], capacity: int, keep: int, config: ModelConfig) -> None:
    """UserError unless every prompt has `keep` tokens, fits the capacity, and the capacity fits the model."""
    lengths = [len(prompt.input_ids) for prompt in prompts]
    if not lengths or min(lengths) < keep or keep < 1:
        raise UserError(
            f"prompts of {lengths} tokens: expected at least one, of {max(keep, 1)} tokens or more"
        )
    if capacity < max(lengths):
        raise UserError(f"a prompt of {max(lengths)} tokens does not fit a cache of {capacity}: shorten it")
    if capacity > (limit := config.text.max_position_embeddings):
        raise UserError(f"a cache of {capacity} tokens: the model ends at {limit}, ask for less")
