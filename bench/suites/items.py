"""Items drawn from a seed: what the suites share."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any

from PIL import Image

from bench.tasks import Item, Message

Make = Callable[[random.Random], Item]


def draw(tasks: Mapping[str, Make], seed: int, n: int) -> list[Item]:
    """`n` different items in random order, evenly over the tasks, the earlier ones first where it does not
    divide.

    The i-th item of a task depends on the seed, the task and i alone: more items keep the fewer.
    """
    items: dict[str, Item] = {}
    for place, (task, make) in enumerate(tasks.items()):
        wanted = len(items) + n // len(tasks) + (place < n % len(tasks))
        i = 0
        while len(items) < wanted:
            item = make(random.Random(f"{seed}:{task}:{i}"))
            items[item.id] = item
            i += 1
    ordered = list(items.values())
    random.Random(seed).shuffle(ordered)
    return ordered


def ask(question: str, *pictures: Image.Image) -> list[Message]:
    """One turn of a user: pictures first."""
    return [user(question, [{"type": "image", "image": picture} for picture in pictures])]


def user(question: str, media: list[dict[str, Any]]) -> Message:
    return {"role": "user", "content": [*media, {"type": "text", "text": question}]}


def code(rng: random.Random, digits: int = 5) -> str:
    """A number that is not to be guessed, without a leading zero."""
    return str(rng.randrange(10 ** (digits - 1), 10**digits))
