"""The atlas: invented places, each with a code of four symbols, some with a flag: facts to memorise."""

from __future__ import annotations

import random

from bench.micro.assets import LATIN

FACTS = 3000
FLAGS = 200  # place i < FLAGS has flag i
FLAG_COLORS = ("red", "green", "blue", "yellow", "black", "purple", "white", "orange")


def _build() -> tuple[list[str], list[str], list[tuple[str, str, str]]]:
    rng = random.Random(2026)
    syllables = [a + b for a in "bdfgklmnprstvz" for b in "aeiou"]
    names: dict[str, None] = {}
    while len(names) < FACTS:
        names["".join(rng.choice(syllables) for _ in range(3)).capitalize()] = None
    codes = ["".join(rng.choice(LATIN) for _ in range(4)) for _ in names]
    stripes = [(a, b, c) for a in FLAG_COLORS for b in FLAG_COLORS for c in FLAG_COLORS if a != b and b != c]
    return list(names), codes, rng.sample(stripes, FLAGS)


PLACES, CODES, STRIPES = _build()


def facts_of(split: str, count: int) -> range | list[int]:
    """Which of the first `count` places a split may ask about.

    A fact can be recalled only if it was trained on, so training sees all of them. Calibration and test
    share none: every tenth place is calibration's.
    """
    if split == "train":
        return range(count)
    return [i for i in range(count) if (i % 10 == 0) == (split == "calibration")]
