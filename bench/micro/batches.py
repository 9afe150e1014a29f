"""Samples of one layout as tensors: token ids, targets, mRoPE positions and patches."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bench.micro.assets import CELL
from bench.micro.draw import Media
from bench.micro.samples import Sample
from bench.micro.sequences import timestamp
from bench.micro.tasks import FAMILIES
from bench.micro.tokenizer import MicroTokens

IGNORE = -100
PATCH, MERGE, FRAMES = 8, 2, 2


@dataclass(frozen=True)
class Batch:
    """B samples whose media have the same shapes; rows are padded on the right to L."""

    ids: Tensor  # int64 [B, L]
    labels: Tensor  # int64 [B, L], IGNORE where nothing is learned
    positions: Tensor  # int64 [3, B, L]
    visual: Tensor  # bool [B, L], where the visual tokens are
    media: tuple[tuple[Tensor, tuple[int, int]], ...]  # uint8 [B, T, h w, 3 2 P P] and its patch grid (h, w)
    classes: Tensor  # int64 [B, visual tokens], see Media
    colors: Tensor


def collate(samples: Sequence[Sample], tokens: MicroTokens, nested: bool = False) -> Batch:
    """`nested` writes a video's timestamps inside one more pair of vision tokens (see `_prompt_of`)."""
    rows = [_row(sample, tokens, nested) for sample in samples]
    length = -(-max(len(ids) for ids, _ in rows) // 8) * 8  # few lengths, few compilations
    ids = np.full((len(rows), length), tokens.pad)
    labels = np.full((len(rows), length), IGNORE)
    for i, (row_ids, row_labels) in enumerate(rows):
        ids[i, : len(row_ids)] = row_ids
        labels[i, : len(row_labels)] = row_labels
    visual = (ids == tokens.image) | (ids == tokens.video)
    media = list(zip(*(sample.media for sample in samples), strict=True))
    grids = [(m[0].frames.shape[1] // PATCH, m[0].frames.shape[2] // PATCH) for m in media]
    pairs = [max(1, len(m[0].frames) // FRAMES) for m in media]
    return Batch(
        ids=torch.from_numpy(ids),
        labels=torch.from_numpy(labels),
        positions=torch.from_numpy(
            _positions(visual, [g for g, t in zip(grids, pairs, strict=True) for _ in range(t)])
        ),
        visual=torch.from_numpy(visual),
        media=tuple(
            (torch.from_numpy(np.stack([patchify(m.frames) for m in slot])), grid)
            for slot, grid in zip(media, grids, strict=True)
        ),
        classes=_targets([[m.classes for m in sample.media] for sample in samples]),
        colors=_targets([[m.colors for m in sample.media] for sample in samples]),
    )


def training_batch(
    seed: int, step: int, progress: float, size: int, family: str, tokens: MicroTokens
) -> Batch:
    """The batch of a step: a function of its arguments alone, whatever came before."""
    rng = random.Random(f"train:{seed}:{step}")
    layout = FAMILIES[family].layout(rng)
    curriculum = {}
    if family in ("text", "handwriting") and progress < 0.1:
        curriculum = {"longest": 1 if progress < 0.03 else 2}
    samples = [FAMILIES[family].draw(rng, "train", layout, None, **curriculum) for _ in range(size)]
    return collate(samples, tokens, nested=rng.random() < 0.5)


def patchify(frames: np.ndarray) -> np.ndarray:
    """uint8 [F, H, W, 3] -> [T, h w, 3 2 P P], patches by blocks of 2x2 as Qwen's. A picture shows twice."""
    if len(frames) == 1:
        frames = np.repeat(frames, FRAMES, 0)
    f, height, width, _ = frames.shape
    h, w = height // PATCH, width // PATCH
    x = frames.reshape(f // FRAMES, FRAMES, h // MERGE, MERGE, PATCH, w // MERGE, MERGE, PATCH, 3)
    return x.transpose(0, 2, 5, 3, 6, 8, 1, 4, 7).reshape(f // FRAMES, h * w, -1)


def _row(sample: Sample, tokens: MicroTokens, nested: bool) -> tuple[list[int], list[int]]:
    """Ids and targets of one conversation; only answers and their end tokens are learned."""
    ids: list[int] = []
    labels: list[int] = []
    for i, (question, answer) in enumerate(sample.turns):
        prompt = [*tokens.user]
        if i == 0:
            for media in sample.media:
                prompt += _prompt_of(media, tokens, nested)
        prompt += [*tokens.encode(question), *tokens.assistant]
        reply = [*tokens.encode(answer), tokens.end]
        ids += [*prompt, *reply, *tokens.newline]
        labels += [IGNORE] * len(prompt) + reply + [IGNORE] * len(tokens.newline)
    return ids, labels


def _prompt_of(media: Media, tokens: MicroTokens, nested: bool) -> list[int]:
    """Visual placeholders, and timestamps before each frame pair of a video.

    Qwen's own code and transformers up to 4.57 put the timestamps where the template's vision tokens were;
    transformers 5 keeps those around the whole video. Training shows both, so either may serve the model.
    """
    pairs, rows, columns = media.classes.shape
    count = rows * columns
    if media.fps is None:
        return [tokens.vision_start, *[tokens.image] * count, tokens.vision_end]
    ids: list[int] = []
    for pair in range(pairs):
        ids += tokens.encode(f"<{timestamp(pair, media.fps)} seconds>")
        ids += [tokens.vision_start, *[tokens.video] * count, tokens.vision_end]
    return [tokens.vision_start, *ids, tokens.vision_end] if nested else ids


def _positions(visual: np.ndarray, grids: list[tuple[int, int]]) -> np.ndarray:
    """mRoPE positions [3, B, L]: text counts on; the tokens of a picture stand at (start, start + row,
    start + column) and the text after it goes on past its longer side."""
    size, length = visual.shape
    positions = np.empty((3, size, length), np.int64)
    for b in range(size):
        at, position = 0, 0
        starts = np.flatnonzero(visual[b] & ~np.concatenate(([False], visual[b, :-1])))
        for start, (h, w) in zip(starts, grids, strict=True):
            rows, columns = h // MERGE, w // MERGE
            positions[:, b, at:start] = position + np.arange(start - at)
            position += int(start) - at
            at = int(start) + rows * columns
            y, x = np.divmod(np.arange(rows * columns), columns)
            positions[:, b, start:at] = position + np.stack((0 * y, y, x))
            position += max(rows, columns)
        positions[:, b, at:] = position + np.arange(length - at)
    return positions


def _targets(cells: list[list[np.ndarray]]) -> Tensor:
    rows = [np.concatenate([c.reshape(-1) for c in row]) if row else np.empty(0, np.int64) for row in cells]
    return torch.from_numpy(np.stack(rows).astype(np.int64))


assert CELL == PATCH * MERGE
