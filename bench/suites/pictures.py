"""Things on a wall: their colours, number, places and boxes, sentences about them, and what is not there."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image, ImageDraw

from bench.suites.drawing import backdrop
from bench.suites.items import Make, ask
from bench.tasks import Item

COLORS = {
    "red": (205, 35, 40),
    "orange": (240, 135, 25),
    "yellow": (240, 205, 30),
    "green": (40, 150, 65),
    "blue": (35, 85, 200),
    "purple": (125, 50, 160),
    "pink": (245, 130, 180),
    "brown": (115, 70, 35),
    "black": (25, 25, 30),
}
SIDE_WORDS = "left, right, above, below"
SIDES = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
MOST = 8  # of one kind in a picture

Pen = ImageDraw.ImageDraw
Box = tuple[int, int, int, int]


def _star(pen: Pen, s: float) -> None:
    radius = (0.5, 0.2)
    turns = [(radius[i % 2], math.pi * (i / 5 - 0.5)) for i in range(10)]
    pen.polygon([(s * (0.5 + r * math.cos(a)), s * (0.5 + r * math.sin(a))) for r, a in turns], fill=255)


def _heart(pen: Pen, s: float) -> None:
    pen.ellipse((0, s * 0.06, s * 0.54, s * 0.6), fill=255)
    pen.ellipse((s * 0.46, s * 0.06, s, s * 0.6), fill=255)
    pen.polygon([(s * 0.04, s * 0.45), (s * 0.96, s * 0.45), (s * 0.5, s)], fill=255)


def _moon(pen: Pen, s: float) -> None:
    pen.ellipse((0, 0, s, s), fill=255)
    pen.ellipse((s * 0.32, -s * 0.06, s * 1.2, s * 0.82), fill=0)


def _house(pen: Pen, s: float) -> None:
    pen.polygon([(0, s * 0.45), (s * 0.5, 0), (s, s * 0.45)], fill=255)
    pen.rectangle((s * 0.12, s * 0.45, s * 0.88, s), fill=255)
    pen.rectangle((s * 0.42, s * 0.66, s * 0.62, s), fill=0)


def _tree(pen: Pen, s: float) -> None:
    for top in (0.0, 0.22, 0.44):
        pen.polygon(
            [
                (s * 0.5, s * top),
                (s * (0.35 - top / 2), s * (top + 0.36)),
                (s * (0.65 + top / 2), s * (top + 0.36)),
            ],
            fill=255,
        )
    pen.rectangle((s * 0.43, s * 0.78, s * 0.57, s), fill=255)


def _fish(pen: Pen, s: float) -> None:
    pen.ellipse((0, s * 0.22, s * 0.76, s * 0.78), fill=255)
    pen.polygon([(s * 0.65, s * 0.5), (s, s * 0.22), (s, s * 0.78)], fill=255)
    pen.ellipse((s * 0.14, s * 0.38, s * 0.24, s * 0.48), fill=0)


def _cup(pen: Pen, s: float) -> None:
    pen.ellipse((s * 0.52, s * 0.22, s, s * 0.72), fill=255)
    pen.ellipse((s * 0.62, s * 0.33, s * 0.88, s * 0.61), fill=0)
    pen.polygon([(0, s * 0.1), (s * 0.75, s * 0.1), (s * 0.65, s * 0.95), (s * 0.1, s * 0.95)], fill=255)


def _key(pen: Pen, s: float) -> None:
    pen.ellipse((0, s * 0.27, s * 0.46, s * 0.73), fill=255)
    pen.ellipse((s * 0.13, s * 0.4, s * 0.33, s * 0.6), fill=0)
    pen.rectangle((s * 0.42, s * 0.45, s, s * 0.55), fill=255)
    for at in (0.72, 0.88):
        pen.rectangle((s * at, s * 0.5, s * (at + 0.08), s * 0.72), fill=255)


def _umbrella(pen: Pen, s: float) -> None:
    pen.pieslice((0, 0, s, s), 180, 360, fill=255)
    for at in (0.0, 1 / 3, 2 / 3):
        pen.ellipse((s * at, s * 0.42, s * (at + 1 / 3), s * 0.6), fill=0)
    pen.rectangle((s * 0.47, s * 0.3, s * 0.53, s * 0.9), fill=255)
    pen.arc((s * 0.47, s * 0.8, s * 0.69, s), 0, 180, fill=255, width=max(1, round(s * 0.06)))


def _boat(pen: Pen, s: float) -> None:
    pen.polygon([(0, s * 0.68), (s, s * 0.68), (s * 0.82, s), (s * 0.18, s)], fill=255)
    pen.polygon([(s * 0.46, 0), (s * 0.46, s * 0.62), (s * 0.06, s * 0.62)], fill=255)
    pen.polygon([(s * 0.54, s * 0.12), (s * 0.54, s * 0.62), (s * 0.9, s * 0.62)], fill=255)


KINDS: dict[str, Callable[[Pen, float], None]] = {
    "circle": lambda pen, s: pen.ellipse((0, 0, s, s), fill=255),
    "square": lambda pen, s: pen.rectangle((s * 0.05, s * 0.05, s * 0.95, s * 0.95), fill=255),
    "triangle": lambda pen, s: pen.polygon([(s * 0.5, 0), (0, s * 0.9), (s, s * 0.9)], fill=255),
    "star": _star,
    "heart": _heart,
    "moon": _moon,
    "house": _house,
    "tree": _tree,
    "fish": _fish,
    "cup": _cup,
    "key": _key,
    "umbrella": _umbrella,
    "boat": _boat,
}


@dataclass(frozen=True)
class Thing:
    color: str
    kind: str
    x: int
    y: int
    size: int

    @property
    def name(self) -> str:
        return f"{self.color} {self.kind}"


def paint(picture: Image.Image, thing: Thing, rng: random.Random) -> Box:
    """Paints the thing, four times as fine and then shrunk; returns the box around its ink."""
    fine = Image.new("L", (4 * thing.size, 4 * thing.size))
    KINDS[thing.kind](ImageDraw.Draw(fine), 4 * thing.size - 1)
    mask = fine.resize((thing.size, thing.size), Image.Resampling.LANCZOS)
    tint = tuple(max(0, min(255, level + rng.randint(-14, 14))) for level in COLORS[thing.color])
    picture.paste(tint, (thing.x, thing.y), mask)
    left, top, right, bottom = mask.point(lambda level: 255 * (level > 127)).getbbox() or (0, 0, 1, 1)
    return thing.x + left, thing.y + top, thing.x + right, thing.y + bottom


def scene(rng: random.Random, names: list[tuple[str, str]]) -> tuple[Image.Image, list[Thing], list[Box]]:
    """The things, (colour, kind) each, at places where they do not touch."""
    width, height = rng.randrange(448, 897, 32), rng.randrange(448, 705, 32)
    things: list[Thing] = []
    while len(things) < len(names):
        things = []
        for color, kind in names:
            for _ in range(60):
                size = rng.randint(64, 150 if len(names) < 9 else 96)
                one = Thing(
                    color, kind, rng.randint(8, width - size - 8), rng.randint(8, height - size - 8), size
                )
                if all(_apart(one, other) for other in things):
                    things.append(one)
                    break
    picture = backdrop(rng, width, height)
    return picture, things, [paint(picture, thing, rng) for thing in things]


def _apart(a: Thing, b: Thing) -> bool:
    gap = 12
    return (
        a.x + a.size + gap < b.x
        or b.x + b.size + gap < a.x
        or a.y + a.size + gap < b.y
        or b.y + b.size + gap < a.y
    )


def different(rng: random.Random, n: int) -> list[tuple[str, str]]:
    """Things that share neither colour nor kind, so that either alone names one."""
    return list(zip(rng.sample(list(COLORS), n), rng.sample(list(KINDS), n), strict=True))


def attribute(rng: random.Random) -> Item:
    picture, things, _ = scene(rng, different(rng, rng.randint(4, 7)))
    one = rng.choice(things)
    question = f"What color is the {one.kind}? Answer with one word."
    return Item.make("attribute", ask(question, picture), one.color, 1 / len(COLORS), "words")


def match(rng: random.Random) -> Item:
    """One of four sentences is true; the others tell the same colours and kinds, bound otherwise."""
    names = different(rng, 4)
    (a, x), (b, y), (c, z), _ = names
    picture, _, _ = scene(rng, names)
    true, swapped = (a, x, b, y), (b, x, a, y)
    options = [true, swapped, *rng.sample([(c, x, a, z), (b, z, c, y), (c, y, b, x)], 2)]
    rng.shuffle(options)
    said = [
        f"{letter}. There is a {p} {q} and a {r} {s}."
        for letter, (p, q, r, s) in zip("ABCD", options, strict=True)
    ]
    question = "Which sentence is true of the picture?\n" + "\n".join(said) + "\nAnswer with its letter only."
    right = "ABCD"[options.index(true)]
    return Item.make("match", ask(question, picture), right, 1 / 4, "choice")


def counting(rng: random.Random) -> Item:
    asked, *others = rng.sample(list(KINDS), 4)
    number = rng.randint(0, MOST)
    kinds = [asked] * number + [rng.choice(others) for _ in range(rng.randint(2, 4))]
    picture, _, _ = scene(rng, [(rng.choice(list(COLORS)), kind) for kind in kinds])
    question = f"How many {PLURALS.get(asked, asked + 's')} are there? Answer with a number only."
    return Item.make("count", ask(question, picture), str(number), 1 / (MOST + 1), "count")


PLURALS = {"fish": "fish"}


def relation(rng: random.Random) -> Item:
    """Two of the things lie clearly beside or above each other, never both."""
    while True:
        picture, things, _ = scene(rng, different(rng, rng.randint(4, 6)))
        one, other = rng.sample(things, 2)
        dx, dy = (
            (one.x + one.size / 2) - (other.x + other.size / 2),
            (one.y + one.size / 2) - (other.y + other.size / 2),
        )
        for side, (x, y) in SIDES.items():
            if dx * x + dy * y > 2.5 * abs(dx * y + dy * x):
                word = side.removesuffix(" of")
                question = (
                    f"Where is the {one.name}, seen from the {other.name}? Answer with one of: {SIDE_WORDS}."
                )
                return Item.make("relation", ask(question, picture), word, 1 / 4, "words")


def grounding(rng: random.Random) -> Item:
    picture, things, boxes = scene(rng, different(rng, rng.randint(3, 6)))
    i = rng.randrange(len(things))
    left, top, right, bottom = boxes[i]
    w, h = picture.size
    box = [round(1000 * v / side) for v, side in ((left, w), (top, h), (right, w), (bottom, h))]
    question = (
        f'Locate the {things[i].name}. Answer with JSON only: {{"bbox_2d": [x1, y1, x2, y2]}}, '
        "in coordinates from 0 to 1000."
    )
    return Item.make("box", ask(question, picture), json.dumps(box), 0.0, "box")


def absent(rng: random.Random) -> Item:
    """Half of the time the thing is not there, and there is one to be mistaken for it."""
    names = different(rng, rng.randint(4, 6))
    gone = rng.random() < 0.5
    missing = names.pop()
    picture, things, _ = scene(rng, names)
    color, kind = missing if gone else (things[0].color, things[0].kind)
    question = f"What color is the {kind}? Answer with one word; if there is no {kind}, answer: none"
    return Item.make("absent", ask(question, picture), "none" if gone else color, 1 / 2, "words")


TASKS: dict[str, Make] = {
    "match": match,
    "attribute": attribute,
    "count": counting,
    "relation": relation,
    "box": grounding,
    "absent": absent,
}
