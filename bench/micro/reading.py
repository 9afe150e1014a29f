"""Recalling and reading: the atlas (text), flags, printed text, handwritten numbers."""

from __future__ import annotations

import random

import numpy as np

from bench.micro.assets import CELL, CHARS, digits_of
from bench.micro.atlas import CODES, FACTS, FLAGS, PLACES, STRIPES, facts_of
from bench.micro.draw import (
    COLOR_NAMES,
    EMPTY,
    UNLABELLED,
    Canvas,
    contrast,
    digit_mask,
    glyph_mask,
    shade,
    tint,
)
from bench.micro.samples import ORDINALS, Layout, Sample

MAX_TEXT, MAX_DIGITS = 4, 3
# Written lines keep near the grid of visual tokens; anywhere at all, half an hour did not teach reading.
SLACK = 2
ATLAS_TURNS = 6  # facts a training sample asks for


def atlas(rng: random.Random, split: str, layout: Layout, kind: str | None) -> Sample:
    """A memorised fact: the code of a place."""
    places = rng.sample(facts_of(split, FACTS), ATLAS_TURNS if kind is None else 1)
    return Sample((), tuple((f"Code of {PLACES[i]}?", CODES[i]) for i in places))


def flag(rng: random.Random, split: str, layout: Layout, kind: str | None) -> Sample:
    """A memorised picture: whose flag has these three stripes. The borders between them are off the grid."""
    index = rng.choice(facts_of(split, FLAGS))
    ((_, height, width),) = layout
    canvas = Canvas(height, width, np.zeros(3, np.float32))
    light = np.float32(rng.uniform(0.85, 1))
    edges = [0, *(round(width * k / 3) + rng.randint(-3, 3) for k in (1, 2)), width]
    for color, left, right in zip(STRIPES[index], edges, edges[1:], strict=False):
        canvas.pixels[:, left:right] = tint(rng, color, 12) * light
        canvas.colors[:, round((left + right) / 2) // CELL] = COLOR_NAMES.index(color)
    canvas.classes[:] = UNLABELLED
    return Sample((canvas.picture(rng),), (("Whose flag is this?", PLACES[index]),))


def text(rng: random.Random, split: str, layout: Layout, kind: str | None, longest: int = MAX_TEXT) -> Sample:
    """Printed Latin letters, digits and Chinese characters."""
    chars = [rng.choice(CHARS) for _ in range(rng.randint(1, longest))]
    canvas = _line(rng, layout, [(glyph_mask(rng, char), char) for char in chars])
    turns = [("Read the text.", "".join(chars))]
    if kind is None:
        for _ in range(2):
            i = rng.randrange(len(chars))
            turns.append((f"What is the {ORDINALS[i]} character?", chars[i]))
    return Sample((canvas.picture(rng),), tuple(turns))


def handwriting(
    rng: random.Random, split: str, layout: Layout, kind: str | None, longest: int = MAX_DIGITS
) -> Sample:
    """A number of real handwritten digits."""
    digits = [rng.randrange(10) for _ in range(rng.randint(1, longest))]
    canvas = _line(rng, layout, [(digit_mask(rng, rng.choice(digits_of(split, d))), str(d)) for d in digits])
    return Sample((canvas.picture(rng),), (("Read the number.", "".join(map(str, digits))),))


def _line(rng: random.Random, layout: Layout, masks: list[tuple[np.ndarray, str]]) -> Canvas:
    """Masks of one cell each side by side, up to SLACK pixels off the grid each way."""
    ((_, height, width),) = layout
    ink, paper = contrast(rng)
    canvas = Canvas(height, width, paper)
    y, x = (
        min(max(CELL * rng.randint(0, room // CELL) + rng.randint(-SLACK, SLACK), 0), room)
        for room in (height - CELL, width - CELL * len(masks))
    )
    for mask, name in masks:
        top = min(max(y + rng.randint(-1, 1), 0), height - CELL)
        canvas.paint(mask, top, x, ink + shade(rng, -8, 8))
        canvas.label(y + CELL / 2, x + CELL / 2, name)
        x += CELL
    assert (canvas.classes != EMPTY).sum() == len(masks)
    return canvas
