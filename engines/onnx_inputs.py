"""What a decoder graph is told of its tokens, in either dialect: where they stand and what they may see."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from engines.config import ModelConfig
from engines.rotary import text_frequencies

Arrays = dict[str, NDArray[Any]]
MASKED = np.float16(-65504)  # not -inf: a padded token that may look nowhere must not become NaN


class DecoderInputs(Protocol):
    """The input arrays of one dialect (engines.graphs.fused, engines.graphs.standard)."""

    floats: type[np.floating]

    def arrays(self, batch: int, size: int, capacity: int) -> Arrays:
        """Zeroed inputs for `size` new tokens of each sequence, a cache of `capacity`; no media."""

    def place(
        self,
        arrays: Arrays,
        starts: NDArray[np.int64],
        counts: NDArray[np.int64],
        positions: NDArray[np.int64],
    ) -> None:
        """Say where the tokens stand: `starts` [B] cached before, `counts` [B] new, `positions` [3, B, S]."""


class FusedInputs:
    """For onnxruntime's own operators: lengths, and the graph turns positions into angles."""

    floats = np.float32

    def __init__(self, config: ModelConfig) -> None:
        self._config = config

    def arrays(self, batch: int, size: int, capacity: int) -> Arrays:
        """See DecoderInputs.arrays."""
        hidden, taps = self._config.text.hidden_size, len(self._config.vision.deepstack_visual_indexes)
        return {
            "inputs_embeds": np.zeros((batch, size, hidden), np.float32),
            "position_ids": np.zeros((3, batch, size), np.int64),
            "deepstack": np.zeros((taps, 1, 1, hidden), np.float32),
            "seqlens_k": np.zeros(batch, np.int32),
            "total_length": np.zeros((), np.int32),
            "query_seqlens": np.zeros(batch, np.int32),
        }

    def place(
        self,
        arrays: Arrays,
        starts: NDArray[np.int64],
        counts: NDArray[np.int64],
        positions: NDArray[np.int64],
    ) -> None:
        """See DecoderInputs.place."""
        arrays["position_ids"][:] = positions
        arrays["seqlens_k"][:] = starts + counts - 1
        arrays["total_length"][...] = starts.max() + positions.shape[2]
        arrays["query_seqlens"][:] = counts


class StandardInputs:
    """For standard operators: angles and an explicit mask over the whole cache."""

    floats = np.float16

    def __init__(self, config: ModelConfig) -> None:
        self._config = config
        self._frequencies = text_frequencies(config.text)

    def arrays(self, batch: int, size: int, capacity: int) -> Arrays:
        """See DecoderInputs.arrays."""
        text, taps = self._config.text, len(self._config.vision.deepstack_visual_indexes)
        return {
            "inputs_embeds": np.zeros((batch, size, text.hidden_size), np.float16),
            "deepstack": np.zeros((taps, batch, size, text.hidden_size), np.float16),
            "rotary_cos": np.zeros((batch, size, text.head_dim // 2), np.float16),
            "rotary_sin": np.zeros((batch, size, text.head_dim // 2), np.float16),
            "attention_mask": np.zeros((batch, 1, size, capacity), np.float16),
            "write_indices": np.zeros(batch, np.int64),
        }

    def place(
        self,
        arrays: Arrays,
        starts: NDArray[np.int64],
        counts: NDArray[np.int64],
        positions: NDArray[np.int64],
    ) -> None:
        """See DecoderInputs.place. What padding writes past a sequence's end, its next token overwrites."""
        angles = np.einsum("abs,ad->bsd", positions.astype(np.float32), self._frequencies)
        arrays["rotary_cos"][:] = np.cos(angles)
        arrays["rotary_sin"][:] = np.sin(angles)
        size, capacity = arrays["attention_mask"].shape[2:]
        own = (starts[:, None] + np.arange(size))[:, None, :, None]  # where in the cache each token stands
        arrays["attention_mask"][:] = np.where(np.arange(capacity) <= own, np.float16(0), MASKED)
        arrays["write_indices"][:] = starts
