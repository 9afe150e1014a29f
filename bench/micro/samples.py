"""What every task family draws: media and the questions about them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from bench.micro.draw import Canvas, Media, shade, shape_mask, tint

Turn = tuple[str, str]  # question, answer
Layout = tuple[tuple[int, int, int], ...]  # (frames, height, width) of each picture or video

SCENE_COLORS = ("red", "green", "blue", "yellow", "black", "purple")
ORDINALS = ("first", "second", "third", "fourth")


@dataclass(frozen=True)
class Sample:
    """Media, then one question for an item or several about the same media for training."""

    media: tuple[Media, ...]
    turns: tuple[Turn, ...]


def pick(rng: random.Random, turns: Sequence[Turn], answer: str | None = None) -> Turn | None:
    """A question with `answer`, or with any of the answers at hand, each as likely, else None."""
    answers = sorted({a for _, a in turns})
    if not answers:
        return None
    wanted = rng.choice(answers) if answer is None else answer
    fitting = [turn for turn in turns if turn[1] == wanted]
    return rng.choice(fitting) if fitting else None


def blank(rng: random.Random, height: int, width: int) -> Canvas:
    """A light, empty picture for shapes to stand on."""
    return Canvas(height, width, shade(rng, 205, 240))


def put_shape(rng: random.Random, canvas: Canvas, box: tuple[int, int, int], color: str, shape: str) -> None:
    """Paints a shape into the square box (y, x, size) and labels the cell of its centre."""
    y, x, size = box
    canvas.paint(shape_mask(rng, shape, size), y, x, tint(rng, color))
    canvas.label(y + size / 2, x + size / 2, shape, color)
