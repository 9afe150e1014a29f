"""SVG by hand: elements, axes, and labels that keep clear of each other.

Elements carry classes but no colours and no ids, so one drawing serves a light and a dark page, and equal
data give equal text. Whatever is not Markup is escaped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

WIDTH = 460
Box = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True)
class Axis:
    """Maps [low, high] to pixels [start, end], on a linear or logarithmic scale."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        a, b, v = (math.log(x) if self.log else x for x in (self.low, self.high, value))
        return self.start + (self.end - self.start) * (v - a) / (b - a)

    def ticks(self, about: int = 5) -> list[float]:
        """Round values within the range: 1, 2, 5 in every decade, or evenly spaced if that gives too few."""
        if self.log:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            for digits in ((1, 2, 5), (1,)):
                values = [digit * 10.0**decade for decade in decades for digit in digits]
                within = [value for value in values if self.low <= value <= self.high]
                if 3 <= len(within) <= about + 2:
                    return within
        raw = (self.high - self.low) / about
        power = 10.0 ** math.floor(math.log10(raw))
        step = next(digit * power for digit in (1, 2, 2.5, 5, 10) if digit * power >= raw)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [i * step for i in range(first, last + 1)]


def place_labels(points: Sequence[tuple[float, float, str]], frame: Box) -> list[tuple[float, float, str]]:
    """(x, y, anchor) of a label beside each point, where it hides the fewest points and labels. Greedy."""
    sides = ((10.0, "start"), (-10.0, "end"))
    offsets = [(dx, dy, anchor) for dy in (4.0, -8.0, 16.0) for dx, anchor in sides]
    offsets += [(0.0, dy, "middle") for dy in (-11.0, 20.0, -24.0, 33.0)]
    offsets += [(dx, dy, anchor) for dy in (-22.0, 30.0, -36.0, 44.0) for dx, anchor in sides]
    taken: list[Box] = [(x - 7, y - 7, x + 7, y + 7) for x, y, _ in points]
    chosen = []
    for x, y, label in points:
        width = 7.6 * len(label)

        def box(offset: tuple[float, float, str], x: float = x, y: float = y, width: float = width) -> Box:
            dx, dy, anchor = offset
            left = x + dx - {"start": 0.0, "middle": 0.5, "end": 1.0}[anchor] * width
            return left, y + dy - 11, left + width, y + dy + 3

        costs = [sum(_overlap(box(o), b) for b in taken) + 100 * _outside(box(o), frame) for o in offsets]
        best = offsets[costs.index(min(costs))]
        taken.append(box(best))
        chosen.append((x + best[0], y + best[1], best[2]))
    return chosen


def _overlap(a: Box, b: Box) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def _outside(a: Box, frame: Box) -> float:
    return max(0.0, frame[0] - a[0], frame[1] - a[1], a[2] - frame[2], a[3] - frame[3])


def svg(height: float, title: str, parts: Sequence[Markup]) -> Markup:
    """A drawing of WIDTH x height units that scales with its place on the page."""
    return tag("svg", *parts, viewBox=f"0 0 {WIDTH} {height:g}", role="img", aria_label=title)


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    return tag("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def text(x: float, y: float, content: str, class_: str) -> Markup:
    return tag("text", content, x=x, y=y, class_=class_)


def tag(name: str, *children: str, **attributes: str | float) -> Markup:
    """One element. `class_` and `aria_label` become class and aria-label; numbers keep one decimal."""
    parts = [Markup("<"), Markup(name)]
    for key, value in attributes.items():
        shown = f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else value
        parts.append(Markup(' {}="{}"').format(Markup(key.rstrip("_").replace("_", "-")), shown))
    inner = (escape(child) for child in children)
    return Markup("").join([*parts, Markup(">"), *inner, Markup("</{}>").format(Markup(name))])
