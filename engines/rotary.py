"""Rotary position embeddings: how far a position turns each pair of a head's dimensions."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from engines.config import TextConfig, VisionConfig


def text_frequencies(config: TextConfig) -> NDArray[np.float32]:
    """Angle per position, f32 [3, head_dim / 2]: which of the three positions turns which pair, and how fast.

    Interleaved mRoPE: the pairs run t h w t h w ... while the height and width sections last, then t
    (Qwen3-VL technical report, 2025; recomposition_frequencies in transformers).
    """
    half = config.head_dim // 2
    exponent = np.arange(half, dtype=np.float32) / np.float32(half)
    frequencies = np.float32(1) / np.float32(config.rope_theta) ** exponent
    axis = np.zeros(half, np.int64)
    for dimension in (1, 2):
        axis[dimension : 3 * config.mrope_section[dimension] : 3] = dimension
    return np.where(axis == np.arange(3)[:, None], frequencies, np.float32(0))


def vision_frequencies(config: VisionConfig) -> NDArray[np.float32]:
    """Angle per row and column, f32 [2, head_dim / 2]: half the pairs turn by row, the others by column."""
    quarter = config.hidden_size // config.num_heads // 4
    exponent = np.arange(quarter, dtype=np.float32) / np.float32(quarter)
    frequencies = np.float32(1) / np.float32(config.rope_theta) ** exponent
    return np.kron(np.eye(2, dtype=np.float32), frequencies)
