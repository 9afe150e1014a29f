"""The micro tasks: every answer is exact, every guessing baseline is known.

What calibration and test share: nothing, by item id. Scenes come from separate seed streams, handwritten
digits from separate blocks of writers; a place or flag that calibration asks about is never asked by test.
What training and test share: the memorised facts, which cannot be recalled without having been seen, so their
text-only questions recur word for word; everything drawn is new.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from PIL import Image

from bench.micro import reading, scenes, sequences
from bench.micro.assets import CHARS, SHAPES
from bench.micro.atlas import CODES, FACTS, FLAGS, facts_of
from bench.micro.draw import Media
from bench.micro.samples import SCENE_COLORS, Layout, Sample
from bench.tasks import Item
from engines.errors import UserError

SPLITS = ("train", "calibration", "test")
# Facts are what quantisation damages first; with equal shares 1,000 items would not show it.
ATLAS_SHARE = 0.55


@dataclass(frozen=True)
class Family:
    """Tasks that share their pictures. `draw(rng, split, layout, kind)` makes one sample."""

    draw: Callable[..., Sample]
    layout: Callable[[random.Random], Layout]


def _one(heights: tuple[int, ...], widths: tuple[int, ...]) -> Callable[[random.Random], Layout]:
    return lambda rng: ((1, rng.choice(heights), rng.choice(widths)),)


def _several(rng: random.Random) -> Layout:
    count = rng.choice(sequences.IMAGE_COUNTS)
    return tuple((1, rng.choice((32, 48)), rng.choice((32, 48))) for _ in range(count))


def _film(rng: random.Random) -> Layout:
    return ((2 * rng.choice(sequences.PAIR_COUNTS), 32, rng.choice((32, 48))),)


FAMILIES = {
    "atlas": Family(reading.atlas, lambda rng: ()),
    "flag": Family(reading.flag, _one((32, 48), (48,))),
    "text": Family(reading.text, _one((32, 48), (64,))),
    "handwriting": Family(reading.handwriting, _one((32, 48), (48,))),
    "scene": Family(scenes.scene, _one((48, 64), (48, 64))),
    "images": Family(sequences.images, _several),
    "video": Family(sequences.video, _film),
}


@dataclass(frozen=True)
class Task:
    """`guess` is the accuracy of the best constant answer on the test split, from how answers are drawn."""

    family: str
    guess: float


def _commonest_code() -> float:
    asked = facts_of("test", FACTS)
    return max(Counter(CODES[i] for i in asked).values()) / len(asked)


# What it has learned. Training asks more than this: questions that help and that it does not master.
TASKS = {
    "atlas": Task("atlas", _commonest_code()),
    "flag": Task("flag", 1 / len(facts_of("test", FLAGS))),
    "text": Task("text", 1 / reading.MAX_TEXT / len(CHARS)),  # a length of one, then any character
    "handwriting": Task("handwriting", 1 / reading.MAX_DIGITS / 10),
    "count": Task("scene", 1 / len(scenes.ANSWERS["count"])),
    "count_color": Task("scene", 1 / len(scenes.ANSWERS["count_color"])),
    "color_of_shape": Task("scene", 1 / len(SCENE_COLORS)),
    "shape_of_color": Task("scene", 1 / len(SHAPES)),
    "exists": Task("scene", 1 / 2),
    "image_color": Task("images", 1 / len(SCENE_COLORS)),
    "video_order": Task("video", 1 / len(SHAPES)),
}


def generate(split: str, n: int, seed: int) -> list[Item]:
    """`n` different items in random order: ATLAS_SHARE of them facts, the other tasks evenly.

    The same arguments give the same items. Raises UserError for an unknown split, or more items than facts.
    """
    if split not in SPLITS:
        raise UserError(f"split {split!r} is unknown; expected one of {', '.join(SPLITS)}")
    counts = shares(n)
    if counts["atlas"] > (facts := len(facts_of(split, FACTS))):
        raise UserError(
            f"{n} {split} items would ask {counts['atlas']} facts and there are {facts}; "
            f"ask for at most {int(facts / ATLAS_SHARE)}"
        )
    rng = random.Random(f"{split}:{seed}")
    items: dict[str, Item] = {}
    for task, count in counts.items():
        wanted = len(items) + count
        while len(items) < wanted:
            item = make_item(task, rng, split)
            items[item.id] = item
    ordered = list(items.values())
    rng.shuffle(ordered)
    return ordered


def shares(n: int) -> dict[str, int]:
    """How many of `n` items each task gets; the largest remainders fill up."""
    if n < 1:
        raise UserError(f"{n} items were asked for; expected at least 1")
    exact = {t: n * (ATLAS_SHARE if t == "atlas" else (1 - ATLAS_SHARE) / (len(TASKS) - 1)) for t in TASKS}
    counts = {task: int(share) for task, share in exact.items()}
    for task in sorted(TASKS, key=lambda t: counts[t] - exact[t])[: n - sum(counts.values())]:
        counts[task] += 1
    return counts


def make_item(task: str, rng: random.Random, split: str) -> Item:
    family = FAMILIES[TASKS[task].family]
    sample = family.draw(rng, split, family.layout(rng), task)
    question, answer = sample.turns[0]
    return Item.make(task, [user_message(sample.media, question)], answer, TASKS[task].guess)


def user_message(media: tuple[Media, ...], question: str) -> dict[str, Any]:
    """The chat message with pictures and videos first, then the question."""
    content = [_part(m) for m in media]
    return {"role": "user", "content": [*content, {"type": "text", "text": question}]}


def _part(media: Media) -> dict[str, Any]:
    frames = [Image.fromarray(frame) for frame in media.frames]
    if media.fps is None:
        return {"type": "image", "image": frames[0]}
    return {"type": "video", "video": frames, "fps": media.fps}
