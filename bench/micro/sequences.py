"""Several images of different sizes, and videos with timestamps: one shape in each image or moment."""

from __future__ import annotations

import random

import numpy as np

from bench.micro.assets import SHAPE_SIZES, SHAPES
from bench.micro.draw import Media
from bench.micro.samples import ORDINALS, SCENE_COLORS, Layout, Sample, Turn, blank, put_shape

IMAGE_COUNTS = (2, 3)
PAIR_COUNTS = (2, 3, 4)  # frame pairs of a video; the vision tower sees two frames at a time
RATES = (1.0, 2.0, 4.0)  # frames a second


def images(rng: random.Random, split: str, layout: Layout, kind: str | None) -> Sample:
    """Colour or shape of an image by its place, or its place by its shape."""
    things = _things(rng, len(layout))
    media = []
    for (_, height, width), (color, shape) in zip(layout, things, strict=True):
        canvas = blank(rng, height, width)
        put_shape(rng, canvas, _box(rng, height, width), color, shape)
        media.append(canvas.picture(rng))
    questions = {
        "image_color": [(f"What color is the shape in the {o} image?", c) for o, (c, _) in _ordered(things)],
        "image_shape": [(f"What shape is in the {o} image?", s) for o, (_, s) in _ordered(things)],
        "image_which": [(f"Which image has a {s}?", o) for o, (_, s) in _ordered(things)],
    }
    return Sample(tuple(media), _turns(rng, questions, kind, 4))


def video(rng: random.Random, split: str, layout: Layout, kind: str | None) -> Sample:
    """When a shape is shown, what colour is shown at a time, which shape comes first or last."""
    ((frames, height, width),) = layout
    things = _things(rng, frames // 2)
    fps = rng.choice(RATES)
    film = _film(rng, height, width, things, fps)
    times = [timestamp(pair, fps) for pair in range(len(things))]
    questions = {
        "video_when": [(f"When is the {s} shown?", t) for t, (_, s) in zip(times, things, strict=True)],
        "video_color": [
            (f"What color is shown at {t} seconds?", c) for t, (c, _) in zip(times, things, strict=True)
        ],
        "video_order": [("What shape comes first?", things[0][1]), ("What shape comes last?", things[-1][1])],
    }
    return Sample((film,), _turns(rng, questions, kind, 5))


def timestamp(pair: int, fps: float) -> str:
    """Seconds as Qwen3-VL writes them before a frame pair: the mean of its two frames' times."""
    return f"{(2 * pair + 0.5) / fps:.1f}"


def _film(rng: random.Random, height: int, width: int, things: list[tuple[str, str]], fps: float) -> Media:
    """Two frames for each thing, which moves by at most a pixel between them."""
    frames, canvases = [], []
    for color, shape in things:
        y, x, size = _box(rng, height, width)
        canvas = blank(rng, height, width)
        put_shape(rng, canvas, (y, x, size), color, shape)
        frames += [canvas.frame(rng), np.roll(canvas.frame(rng), 1, axis=1)]
        canvases.append(canvas)
    return Media(
        np.stack(frames), fps, np.stack([c.classes for c in canvases]), np.stack([c.colors for c in canvases])
    )


def _things(rng: random.Random, count: int) -> list[tuple[str, str]]:
    """Different colours and different shapes, so that every question has one answer."""
    return list(zip(rng.sample(SCENE_COLORS, count), rng.sample(SHAPES, count), strict=True))


def _box(rng: random.Random, height: int, width: int) -> tuple[int, int, int]:
    size = rng.choice(SHAPE_SIZES)
    return rng.randint(0, height - size), rng.randint(0, width - size), size


def _ordered(things: list[tuple[str, str]]) -> list[tuple[str, tuple[str, str]]]:
    return list(zip(ORDINALS, things, strict=False))


def _turns(
    rng: random.Random, questions: dict[str, list[Turn]], kind: str | None, count: int
) -> tuple[Turn, ...]:
    if kind is not None:
        return (rng.choice(questions[kind]),)
    return tuple(rng.choice(questions[rng.choice(list(questions))]) for _ in range(count))
