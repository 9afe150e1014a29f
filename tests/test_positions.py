"""mRoPE positions against Qwen3VLModel.get_rope_index."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLModel

from engines.errors import UserError
from engines.positions import mrope_positions

MERGE = 2
TEXT, IMAGE, VIDEO = 0, 1, 2


def reference_positions(
    kinds: np.ndarray, images: list[Any], videos: list[Any], mask: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """get_rope_index of a batch of token kinds [B, S]; the grids (t, h, w) are in patches."""
    model = SimpleNamespace(
        config=SimpleNamespace(vision_config=SimpleNamespace(spatial_merge_size=MERGE)),
        get_vision_position_ids=partial(Qwen3VLModel.get_vision_position_ids, None),
    )
    positions, deltas = Qwen3VLModel.get_rope_index(
        model,
        torch.from_numpy(kinds),
        torch.from_numpy(kinds),
        torch.tensor(images) if images else None,
        torch.tensor(videos) if videos else None,
        None if mask is None else torch.from_numpy(mask),
    )
    return positions.numpy(), deltas.numpy()


def random_prompt(rng: np.random.Generator) -> tuple[np.ndarray, list[Any], list[Any], list[tuple[int, int]]]:
    """Text, images and timestamped videos in random order: kinds [S], image, video and merged grids."""
    kinds: list[int] = [TEXT] * int(rng.integers(0, 4))
    images, videos, runs = [], [], []
    for _ in range(rng.integers(0, 6)):
        height, width = (int(n) for n in rng.integers(1, 6, 2))
        groups = int(rng.integers(1, 5))
        kind = int(rng.choice([IMAGE, VIDEO]))
        if kind == IMAGE:
            groups = 1
            images.append((1, height * MERGE, width * MERGE))
        else:
            videos.append((groups, height * MERGE, width * MERGE))
        for _ in range(groups):
            kinds += [kind] * (height * width) + [TEXT] * int(rng.integers(1, 9))
            runs.append((height, width))
    kinds += [TEXT] * int(rng.integers(1, 4))
    return np.array(kinds), images, videos, runs


@pytest.mark.parametrize("seed", range(40))
def test_equal_to_the_reference(seed: int) -> None:
    kinds, images, videos, runs = random_prompt(np.random.default_rng(seed))
    expected, deltas = reference_positions(kinds[None], images, videos)
    positions, next_position = mrope_positions(kinds != TEXT, runs)
    assert positions.dtype == np.int64
    np.testing.assert_array_equal(positions, expected[:, 0])
    assert next_position == len(kinds) + deltas[0, 0]


def test_equal_to_the_reference_in_padded_batches() -> None:
    rng = np.random.default_rng(7)
    prompts = [random_prompt(rng) for _ in range(6)]
    longest = max(len(kinds) for kinds, *_ in prompts)
    kinds = np.zeros((len(prompts), longest), np.int64)
    mask = np.zeros((len(prompts), longest), np.int64)
    for row, (prompt, *_) in enumerate(prompts):
        kinds[row, : len(prompt)] = prompt
        mask[row, : len(prompt)] = 1
    images = [grid for _, grids, _, _ in prompts for grid in grids]
    videos = [grid for _, _, grids, _ in prompts for grid in grids]
    expected, deltas = reference_positions(kinds, images, videos, mask)
    for row, (prompt, _, _, runs) in enumerate(prompts):
        positions, next_position = mrope_positions(prompt != TEXT, runs)
        np.testing.assert_array_equal(positions, expected[:, row, : len(prompt)])
        assert next_position == len(prompt) + deltas[row, 0]


def test_by_hand() -> None:
    """Two words, a picture 2 high and 3 wide, which spans positions 2..4, and two words from 5 on."""
    is_vision = np.array([0, 0, 1, 1, 1, 1, 1, 1, 0, 0], bool)
    positions, next_position = mrope_positions(is_vision, [(2, 3)])
    np.testing.assert_array_equal(positions[0], [0, 1, 2, 2, 2, 2, 2, 2, 5, 6])
    np.testing.assert_array_equal(positions[1], [0, 1, 2, 2, 2, 3, 3, 3, 5, 6])
    np.testing.assert_array_equal(positions[2], [0, 1, 2, 3, 4, 2, 3, 4, 5, 6])
    assert next_position == 7


def test_empty_and_text_only() -> None:
    positions, next_position = mrope_positions(np.zeros(0, bool), [])
    assert positions.shape == (3, 0)
    assert next_position == 0
    positions, next_position = mrope_positions(np.zeros(3, bool), [])
    np.testing.assert_array_equal(positions, np.tile([0, 1, 2], (3, 1)))
    assert next_position == 3


@pytest.mark.parametrize("runs", [[], [(2, 2)], [(1, 3), (1, 1)]])
def test_refuses_runs_that_do_not_match(runs: list[tuple[int, int]]) -> None:
    with pytest.raises(UserError, match=r"runs of \[3\] vision tokens"):
        mrope_positions(np.array([False, True, True, True]), runs)
