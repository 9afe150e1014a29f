"""The report's charts, each a function of its data. Colours are classes of the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from bench.statistics import Interval
from bench.svg import WIDTH, Axis, line, place_labels, svg, tag, text

Format = Callable[[float], str]
ZERO = Interval(0.0, 0.0, 0.0)
LARGEST = 13.0  # radius of a disc


@dataclass(frozen=True)
class Mark:
    """A variant's estimates with their intervals; `colour` is its place in the palette, `size` the area of
    its disc as a share of the largest, and one that is `beaten` is drawn hollow.
    """

    label: str
    colour: int
    x: Interval
    y: Interval = ZERO
    size: float | None = None
    beaten: bool = False


@dataclass(frozen=True)
class Series:
    """Values of one variant."""

    label: str
    colour: int
    values: Sequence[float]


def scatter(
    marks: Sequence[Mark],
    *,
    title: str,
    x_label: str,
    y_label: str,
    x_format: Format,
    band: tuple[float, float],
) -> Markup:
    """Points with intervals over a band of tolerance [low, high], whose upper edge is the baseline."""
    left, right, top, bottom = 44, WIDTH - 12, 16, 268
    ends = [*band, *(end for m in marks for end in (m.y.low, m.y.high))]
    pad = max(0.12 * (max(ends) - min(ends)), 0.5)
    y = Axis(min(ends) - pad, max(ends) + pad, bottom, top)
    x = _x_axis([end for m in marks for end in (m.x.low, m.x.high)], left, right, pad=0.3)
    parts = [
        tag("rect", class_="band", x=left, width=right - left, y=y(band[1]), height=y(band[0]) - y(band[1])),
        line(left, y(band[1]), right, y(band[1]), "reference"),
        *_grid_y(y, left, right, "{:g}".format),
        *_grid_x(x, bottom, top, x_format),
        text(left, top - 5, y_label, "axis"),
        text(right, bottom + 32, x_label, "axis end"),
    ]
    spots = _side_by_side([(x(m.x.estimate), y(m.y.high), y(m.y.low)) for m in marks])
    for m, px in zip(marks, spots, strict=True):
        told = f"{m.label}: {m.y.estimate:.2f} ({m.y.low:.2f} to {m.y.high:.2f}), {x_format(m.x.estimate)}"
        py, moved = y(m.y.estimate), px - x(m.x.estimate)
        shapes = (
            line(px, y(m.y.low), px, y(m.y.high), "whisker"),
            line(x(m.x.low) + moved, py, x(m.x.high) + moved, py, "whisker"),
            tag("circle", cx=px, cy=py, r=_radius(m)),
        )
        kind = f"c{m.colour} beaten" if m.beaten else f"c{m.colour}"
        parts.append(tag("g", tag("title", told), *shapes, class_=kind))
    places = [(px, y(m.y.estimate), m.label) for m, px in zip(marks, spots, strict=True)]
    labels = place_labels(places, (left, top, right, bottom))
    for m, (px, py, anchor) in zip(marks, labels, strict=True):
        beside = {"start": 1, "middle": 0, "end": -1}[anchor] * max(0.0, _radius(m) - 5.5)
        parts.append(text(px + beside, py, m.label, f"label {anchor} c{m.colour}"))
    return svg(bottom + 40, title, parts)


def forest(
    groups: Mapping[str, Sequence[Mark]],
    *,
    notes: Mapping[str, str],
    limit: float | None,
    title: str,
    x_label: str,
) -> Markup:
    """Intervals of differences: a group with a note for each task, a mark a variant, lines at zero, limit."""
    left, right, top, step, gap = 118, WIDTH - 14, 22, 13, 14
    ends = [end for group in groups.values() for m in group for end in (m.x.low, m.x.high)]
    low, high = min([*ends, limit or 0.0, -1.0]), max([*ends, 1.0])
    x = Axis(low - 0.04 * (high - low), high + 0.04 * (high - low), left, right)
    heights = [max(len(group) * step, 22) + gap for group in groups.values()]
    bottom = top + sum(heights)
    parts = [*_grid_x(x, bottom, top, _points), line(x(0), top, x(0), bottom, "reference")]
    if limit is not None:
        parts.append(line(x(limit), top, x(limit), bottom, "limit"))
        parts.append(text(x(limit), top - 7, "margin", "limit middle"))
    at = float(top)
    for (task, group), height in zip(groups.items(), heights, strict=True):
        middle = at + height / 2
        parts.append(text(left - 10, middle - 3, task, "name end"))
        parts.append(text(left - 10, middle + 12, notes[task], "faint end"))
        for i, m in enumerate(group):
            py = middle + (i + 0.5 - len(group) / 2) * step
            told = f"{task}, {m.label}: {m.x.estimate:+.2f} ({m.x.low:+.2f} to {m.x.high:+.2f})"
            whisker = line(x(m.x.low), py, x(m.x.high), py, "whisker")
            dot = tag("circle", cx=x(m.x.estimate), cy=py, r=4)
            parts.append(tag("g", tag("title", told), whisker, dot, class_=f"c{m.colour}"))
        at += height
        parts.append(line(left - 108, at, right, at, "rule"))
    parts.append(text(right, bottom + 32, x_label, "axis end"))
    return svg(bottom + 40, title, parts)


def ecdf(series: Sequence[Series], *, title: str, x_label: str) -> Markup:
    """Share of measurements at or below x, a step line a variant; x is logarithmic: ratios are distances."""
    left, right, top, bottom = 44, WIDTH - 14, 16, 228
    x = _x_axis([v for s in series for v in s.values], left, right, pad=0.06)
    y = Axis(0, 1, bottom, top)
    parts = [*_grid_x(x, bottom, top, _short)]
    for level in (0.0, 0.5, 0.95, 1.0):
        parts.append(line(left, y(level), right, y(level), "rule" if level in (0, 1) else "rule dashed"))
        parts.append(text(left - 6, y(level) + 4, f"{level:.0%}" if level < 1 else "", "tick end"))
    for s in series:
        values = np.sort(np.asarray(s.values, float))
        path = [f"M{x(values[0]):.1f} {bottom:.1f}"]
        for i, value in enumerate(values, start=1):
            path.append(f"H{x(value):.1f}V{y(i / len(values)):.1f}")
        p50, p95 = np.quantile(values, [0.5, 0.95])
        told = tag("title", f"{s.label}: p50 {_short(p50)}, p95 {_short(p95)}")
        parts.append(tag("path", told, d="".join(path), class_=f"curve c{s.colour}"))
    parts.append(text(right, bottom + 32, x_label, "axis end"))
    return svg(bottom + 40, title, parts)


def heatmap(
    rows: Sequence[str], columns: Sequence[str], values: Sequence[Sequence[float]], *, title: str
) -> Markup:
    """Cells [row][column] in shades of one colour, the number in each if there is room; NaN stays empty."""
    left, top, height = 118, 8, 22
    width = (WIDTH - left - 8) / len(columns)
    most = float(np.nanmax(np.asarray(values, float)))
    parts = [text(left - 10, top + i * height + 15, name, "name end") for i, name in enumerate(rows)]
    for i, row in enumerate(values):
        for j, value in enumerate(row):
            if math.isnan(value):
                continue
            box = {
                "x": left + j * width + 1,
                "y": top + i * height + 1,
                "width": width - 2,
                "height": height - 2,
            }
            shade = 0.08 + 0.72 * value / most if most > 0 else 0.08
            told = tag("title", f"{rows[i]}, layer {columns[j]}: {value:.2%}")
            parts.append(tag("rect", told, class_="cell", rx=3, fill_opacity=f"{shade:.2f}", **box))
            if width > 34:
                parts.append(
                    text(box["x"] + width / 2 - 1, box["y"] + 14, f"{100 * value:.1f}", "value middle")
                )
    every = math.ceil(len(columns) / 14)
    bottom = top + len(rows) * height
    for j in range(0, len(columns), every):
        parts.append(text(left + (j + 0.5) * width, bottom + 14, columns[j], "tick middle"))
    parts.append(text(WIDTH - 8, bottom + 30, "layer", "axis end"))
    return svg(bottom + 36, title, parts)


def _radius(m: Mark) -> float:
    return 5.5 if m.size is None else max(4.0, LARGEST * math.sqrt(m.size))


def _x_axis(values: Sequence[float], left: float, right: float, pad: float) -> Axis:
    """Logarithmic, wide enough that equal values do not divide by zero, with room for labels at both ends."""
    low, high = min(values), max(values)
    spare = max((high / low) ** pad, 1.3)
    return Axis(low / spare, high * spare, left, right, log=True)


def _side_by_side(bars: Sequence[tuple[float, float, float]]) -> list[float]:
    """The x of vertical bars (x, top, bottom); ones that cover each other moved enough to be seen."""
    placed: list[tuple[float, float, float]] = []
    for px, top, bottom in bars:
        while any(abs(px - x) < 4 and top <= low and high <= bottom for x, high, low in placed):
            px += 4
        placed.append((px, top, bottom))
    return [px for px, _, _ in placed]


def _grid_x(x: Axis, bottom: float, top: float, shown: Format) -> list[Markup]:
    parts = []
    for tick in x.ticks():
        parts.append(line(x(tick), top, x(tick), bottom, "rule"))
        parts.append(text(x(tick), bottom + 16, shown(tick), "tick middle"))
    return parts


def _grid_y(y: Axis, left: float, right: float, shown: Format) -> list[Markup]:
    parts = []
    for tick in y.ticks():
        parts.append(line(left, y(tick), right, y(tick), "rule"))
        parts.append(text(left - 6, y(tick) + 4, shown(tick), "tick end"))
    return parts


def _points(value: float) -> str:
    return f"{value:+g}".replace("-", "−") if value else "0"


def _short(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"
