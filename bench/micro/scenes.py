"""Scenes of up to four coloured shapes at any pixel, of any size: counting, and binding colours to shapes."""

from __future__ import annotations

import random
from dataclasses import dataclass

from bench.micro.assets import CELL, SHAPE_SIZES, SHAPES
from bench.micro.samples import SCENE_COLORS, Layout, Sample, Turn, blank, pick, put_shape

TURNS = 5  # questions a training sample asks about one scene
ANSWERS = {
    "count": ("1", "2", "3", "4"),
    "count_color": ("0", "1", "2", "3"),
    "color_of_shape": SCENE_COLORS,
    "shape_of_color": SHAPES,
    "exists": ("yes", "no"),
}


@dataclass(frozen=True)
class Thing:
    color: str
    shape: str
    box: tuple[int, int, int]  # y, x, size


def scene(rng: random.Random, split: str, layout: Layout, kind: str | None) -> Sample:
    """Training: several questions of all kinds. An item: one of its kind, all answers equally likely."""
    ((_, height, width),) = layout
    if kind is None:
        things = _things(rng, height, width)
        turns = [pick(rng, _questions(rng.choice(list(ANSWERS)), things)) for _ in range(TURNS)]
    else:
        answer = rng.choice(ANSWERS[kind])
        while True:
            things = _things(rng, height, width)
            turns = [pick(rng, _questions(kind, things), answer)]
            if turns[0]:
                break
    canvas = blank(rng, height, width)
    for thing in things:
        put_shape(rng, canvas, thing.box, thing.color, thing.shape)
    return Sample((canvas.picture(rng),), tuple(turn for turn in turns if turn) or (_count(things),))


def _things(rng: random.Random, height: int, width: int) -> list[Thing]:
    palette = rng.sample(SCENE_COLORS, 2) if rng.random() < 0.5 else SCENE_COLORS
    boxes = _boxes(rng, height, width, rng.randint(1, 4))
    return [Thing(rng.choice(palette), rng.choice(SHAPES), box) for box in boxes]


def _boxes(rng: random.Random, height: int, width: int, count: int) -> list[tuple[int, int, int]]:
    """Boxes that do not touch, with their centres in different cells."""
    while True:
        boxes: list[tuple[int, int, int]] = []
        for _ in range(8 * count):
            size = rng.choice(SHAPE_SIZES)
            y, x = rng.randint(0, height - size), rng.randint(0, width - size)
            if all(_apart((y, x, size), other) for other in boxes):
                boxes.append((y, x, size))
                if len(boxes) == count:
                    return boxes


def _apart(a: tuple[int, int, int], b: tuple[int, int, int]) -> bool:
    (ya, xa, na), (yb, xb, nb) = a, b
    touching = ya <= yb + nb and yb <= ya + na and xa <= xb + nb and xb <= xa + na
    return not touching and _cell(a) != _cell(b)


def _cell(box: tuple[int, int, int]) -> tuple[int, int]:
    y, x, size = box
    return int(y + size / 2) // CELL, int(x + size / 2) // CELL


def _count(things: list[Thing]) -> Turn:
    return "How many shapes are there?", str(len(things))


def _questions(kind: str, things: list[Thing]) -> list[Turn]:
    """Every question of a kind that has one answer in this scene."""
    colors, shapes = [t.color for t in things], [t.shape for t in things]
    if kind == "count":
        return [_count(things)]
    if kind == "count_color":
        return [
            (f"How many {c} shapes are there?", str(colors.count(c)))
            for c in SCENE_COLORS
            if colors.count(c) < 4
        ]
    if kind == "color_of_shape":
        return [(f"What color is the {t.shape}?", t.color) for t in things if shapes.count(t.shape) == 1]
    if kind == "shape_of_color":
        return [(f"What shape is {t.color}?", t.shape) for t in things if colors.count(t.color) == 1]
    there = set(zip(colors, shapes, strict=True))
    # What is not there shares its colour or its shape with something that is: a glance does not settle it.
    asked = [(c, s) for c in SCENE_COLORS for s in SHAPES if c in colors or s in shapes]
    return [(f"Is there a {c} {s}?", "yes" if (c, s) in there else "no") for c, s in asked]
