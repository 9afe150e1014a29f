"""Exact match on items by one teacher-forced forward: right if every token of the answer is the likeliest.

That is what greedy decoding gives, without the decoding: 1,000 items take seconds.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from bench.micro.assets import CELL
from bench.micro.batches import Batch, collate
from bench.micro.draw import UNLABELLED, Media
from bench.micro.model import Output, forward
from bench.micro.samples import Sample
from bench.micro.tokenizer import MicroTokens
from bench.tasks import Item

BATCH = 128


@torch.no_grad()
def score(model: Any, tokens: MicroTokens, items: Sequence[Item]) -> list[bool]:
    """Whether each item is answered exactly, in their order. Videos in the form of transformers 5."""
    right = [False] * len(items)
    for rows, batch in batches(tokens, items):
        for i, ok in zip(rows, exact(forward(model, batch)).tolist(), strict=True):
            right[i] = ok
    return right


def batches(tokens: MicroTokens, items: Sequence[Item]) -> Iterator[tuple[list[int], Batch]]:
    """Items that fit one batch, and which of all they are."""
    samples = [_sample(item) for item in items]
    alike = defaultdict(list)
    for i, sample in enumerate(samples):
        alike[tuple(media.frames.shape for media in sample.media)].append(i)
    for group in alike.values():
        for start in range(0, len(group), BATCH):
            rows = group[start : start + BATCH]
            yield rows, collate([samples[i] for i in rows], tokens, nested=True)


def exact(output: Output) -> torch.Tensor:
    """Whether every token of each row's answer is the likeliest, bool [B]."""
    hit = torch.ones_like(output.where)
    hit[output.where] = output.logits.argmax(-1) == output.targets
    return hit.all(1)


def _sample(item: Item) -> Sample:
    *parts, question = item.messages[0]["content"]
    media = tuple(_media(part) for part in parts)
    return Sample(media, ((question["text"], item.answer),))


def _media(part: dict[str, Any]) -> Media:
    pictures = [part["image"]] if part["type"] == "image" else part["video"]
    frames = np.stack([np.asarray(picture) for picture in pictures])
    unknown = np.full(
        (max(1, len(frames) // 2), frames.shape[1] // CELL, frames.shape[2] // CELL), UNLABELLED
    )
    return Media(frames, part.get("fps"), unknown, unknown)
