"""What a session remembers between calls, and what it refuses to begin."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from engines.config import ModelConfig
from engines.errors import UserError
from engines.processor import Inputs


def untouched_zeros(shape: Sequence[int], dtype: DTypeLike) -> NDArray[Any]:
    """Zeros that take memory by small pages, each when it is first written to.

    numpy asks for huge ones: the first tokens of a head would take 2 MB, and a slot all of its context.
    """
    memory = mmap.mmap(-1, int(np.prod(shape)) * np.dtype(dtype).itemsize)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):  # Linux
        memory.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(memory, dtype).reshape(shape)


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

    def check_extend(self, tokens: NDArray[np.int64]) -> None:
        """UserError unless `tokens` are int64 [B, S], at least one for each sequence, with room for them."""
        if tokens.ndim != 2 or len(tokens) != len(self.lengths) or not tokens.size:
            raise UserError(
                f"tokens {tokens.shape} for {len(self.lengths)} cached sequences: one or more for each"
            )
        if self.lengths.max() + tokens.shape[1] > self.capacity:
            raise UserError(f"the cache is full at {self.capacity} tokens: prefill with a larger capacity")

    def advance(self, count: int) -> None:
        """Count `count` more tokens in every sequence."""
        self.lengths += count
        self.positions += count

    def rewind(self, count: int) -> None:
        """Forget the last `count` tokens of every sequence, which extend or decode appended.

        Sessions read no keys and values beyond the lengths, and overwrite them next.
        """
        self.advance(-count)


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
