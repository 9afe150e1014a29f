"""Things that come up on a wall one after the other: when, and in which order."""

from __future__ import annotations

import random

from PIL import Image

from bench.scoring import SECONDS
from bench.suites.drawing import backdrop
from bench.suites.items import Make, user
from bench.suites.pictures import Thing, different, paint
from bench.tasks import Item

FPS = 2.0
FRAMES = 16
SIZE = (320, 256)
PLACES = ((16, 16), (176, 16), (16, 136), (176, 136))  # of things that do not touch


def film(rng: random.Random, n: int) -> tuple[list[Image.Image], list[tuple[float, Thing]]]:
    """Frames, and the second at which each thing comes up to stay, a second or more after the one before."""
    starts = sorted(rng.sample(range(1, FRAMES // 2), n))
    places = rng.sample(PLACES, n)
    things = [
        Thing(color, kind, x + rng.randint(0, 24), y + rng.randint(0, 12), rng.randint(70, 96))
        for (color, kind), (x, y) in zip(different(rng, n), places, strict=True)
    ]
    picture = backdrop(rng, *SIZE)
    frames = []
    for frame in range(FRAMES):
        for start, thing in zip(starts, things, strict=True):
            if frame == 2 * start:
                picture = picture.copy()
                paint(picture, thing, rng)
        frames.append(picture)
    return frames, [(2 * start / FPS, thing) for start, thing in zip(starts, things, strict=True)]


def when(rng: random.Random) -> Item:
    """The second at which a thing comes up; the timestamps told to the model are one second apart."""
    frames, events = film(rng, rng.randint(2, 3))
    second, thing = rng.choice(events)
    question = f"At which second does the {thing.kind} appear? Answer with the number of seconds only."
    answer = f"{second:g}"
    return Item.make("video-when", [user(question, [_part(frames)])], answer, GUESS, "seconds")


def order(rng: random.Random) -> Item:
    """Three things in the order in which they came up."""
    frames, events = film(rng, 3)
    names = [thing.kind for _, thing in events]
    listed = ", ".join(rng.sample(names, 3))
    question = f"In which order do these appear: {listed}? Answer with the three words, separated by commas."
    return Item.make("video-order", [user(question, [_part(frames)])], ", ".join(names), 1 / 6, "sequence")


def _part(frames: list[Image.Image]) -> dict[str, object]:
    return {"type": "video", "video": frames, "fps": FPS}


def _best_guess() -> float:
    """Of always saying the middle of the seconds at which something may come up, all as likely."""
    seconds = [2 * start / FPS for start in range(1, FRAMES // 2)]
    middle = sum(seconds) / len(seconds)
    return sum(max(0.0, 1 - abs(second - middle) / SECONDS) for second in seconds) / len(seconds)


GUESS = _best_guess()
TASKS: dict[str, Make] = {"video-when": when, "video-order": order}
