"""What the planted models are asked: the embedded checkpoint's tasks in equal parts, so that no fault hides.

Pictures are a tenth larger than the grid of patches, or a resize filter would have nothing to do; a second
question about videos asks for a time, or nothing would read the timestamps.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from PIL import Image

from bench.micro import sequences
from bench.micro.tasks import TASKS, make_item, user_message
from bench.tasks import Item

ENLARGED = 1.1
WHEN = "video_when"


def questions(n: int, seed: int) -> list[Item]:
    """`n` different items or a few more, as many of each task; the same for the same seed."""
    rng = random.Random(f"trust:{seed}")
    makers: dict[str, Callable[[], Item]] = {task: _maker(task, rng) for task in TASKS}
    makers[WHEN] = lambda: _when(rng)
    items: dict[str, Item] = {}
    for place, make in enumerate(makers.values(), start=1):
        while len(items) < -(-n * place // len(makers)):
            item = make()
            items[item.id] = item
    return list(items.values())


def _maker(task: str, rng: random.Random) -> Callable[[], Item]:
    def make() -> Item:
        item = make_item(task, rng, "test")
        return Item.make(item.task, [_enlarged(item.messages[0])], item.answer, item.guess, item.metric)

    return make


def _when(rng: random.Random) -> Item:
    """Which of two times, as the prompt writes them before the frames, a shape is shown at."""
    sample = sequences.video(rng, "test", ((4, 32, 48),), WHEN)
    question, answer = sample.turns[0]
    guess = 1 / len(sequences.RATES) / 2  # of always naming the same time
    return Item.make(WHEN, [user_message(sample.media, question)], answer, guess)


def _enlarged(message: dict[str, Any]) -> dict[str, Any]:
    return {**message, "content": [_larger(part) for part in message["content"]]}


def _larger(part: dict[str, Any]) -> dict[str, Any]:
    if part["type"] != "image":
        return part
    picture = part["image"]
    size = round(ENLARGED * picture.width), round(ENLARGED * picture.height)
    return {**part, "image": picture.resize(size, Image.Resampling.BICUBIC)}
