"""Multimodal rotary positions (mRoPE): every token has a temporal, a height and a width position.

Text counts on in all three alike; the tokens of an image, or of one temporal group of a video, share the
position they start at in time and spread over their grid in height and width (Qwen2-VL, arXiv:2409.12191,
section 2.1). Qwen3-VL separates the groups of a video by written timestamps, so each counts as an image.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from engines.errors import UserError


def mrope_positions(
    is_vision: NDArray[np.bool_], grids: Iterable[tuple[int, int]]
) -> tuple[NDArray[np.int64], int]:
    """Positions int64 [3, S] and the position of the next text token.

    is_vision [S] marks the image and video tokens; grids are the (height, width) of each consecutive run of
    them, in merged tokens. Raises UserError when runs and grids do not match.
    """
    runs = list(grids)
    edges = np.flatnonzero(np.diff(is_vision, prepend=False, append=False))
    starts, ends = edges[0::2], edges[1::2]
    found, expected = (ends - starts).tolist(), [height * width for height, width in runs]
    if found != expected:
        raise UserError(
            f"the prompt has runs of {found} vision tokens, its images and videos make {expected}"
        )
    # What each token adds to the position that follows it; a run of vision tokens adds its longer side, once.
    steps = np.where(is_vision, 0, 1)
    steps[ends - 1] = [max(run) for run in runs]
    next_positions = np.cumsum(steps)
    positions = np.tile(next_positions - steps, (3, 1))
    for start, end, (height, width) in zip(starts, ends, runs, strict=True):
        positions[1, start:end] += np.repeat(np.arange(height), width)
        positions[2, start:end] += np.tile(np.arange(width), height)
    return positions, int(next_positions[-1]) if len(next_positions) else 0
