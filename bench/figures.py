"""The charts of a report: which ones the evidence suffices for, and the data of each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from markupsafe import Markup

from bench.accuracy import Observation
from bench.charts import Format, Mark, Series, ecdf, forest, heatmap, scatter
from bench.gate import Gate, Row
from bench.latency import Timing, table
from bench.statistics import Interval, median_ratio
from engines.units import human_size

ALL = "all items"
Colours = Mapping[str, int]  # variant -> place in the page's palette


@dataclass(frozen=True)
class VariantEvidence:
    """What a report shows of one variant. The baseline is the one whose gate compares it with itself.

    `compared` are the baseline's timings on the same device, none for the baseline itself. `layers` holds
    for each decoder layer: linear -> {"error": relative RMSE of its output}.
    """

    name: str
    gate: Gate
    observations: Sequence[Observation] = ()
    timings: Sequence[Timing] = ()
    compared: Sequence[Timing] = ()
    layers: Sequence[Mapping[str, Mapping[str, float]]] = ()


@dataclass(frozen=True)
class Figure:
    """A chart and its words; `legend` names the variants whose colours it does not explain itself."""

    title: str
    lead: str
    svg: Markup
    legend: Sequence[str] = ()


def figures(
    variants: Sequence[VariantEvidence],
    baseline: VariantEvidence,
    sizes: Mapping[str, int],
    memory: Mapping[str, int],
    colours: Colours,
) -> list[Figure]:
    """Accuracy against latency, memory and size, differences by task, latency distributions, errors by layer.

    sizes, memory: bytes on disk and at the peak, by variant.
    """
    timed = [v for v in variants if v.timings]
    latencies = {v.name: latency(v) for v in timed}
    disk = {name: Interval(size, size, size) for name, size in sizes.items()}
    found = [
        _trade_off(
            "latency and memory",
            "end-to-end latency, ms",
            "{:g}".format,
            latencies,
            variants,
            baseline,
            colours,
            memory,
        ),
        _trade_off("size", "on disk", human_size, disk, variants, baseline, colours),
        _by_task([v for v in variants if v is not baseline], colours),
        _distribution("Time to first token", "ttft_ms", timed, colours),
        _distribution("Time between tokens", "itl_ms", timed, colours),
        *(_layer_errors(v) for v in variants if v.layers),
    ]
    return [figure for figure in found if figure]


def accuracy_row(v: VariantEvidence) -> Row | None:
    """The gate's paired comparison over all items, if it could be made."""
    return next((c for c in v.gate.checks if c.name == "accuracy" and c.delta is not None), None)


def latency(v: VariantEvidence) -> Interval:
    """Median end-to-end latency in ms; its interval is that of the ratio to the baseline, by request."""
    mine = table(v.timings, "e2e_latency_ms")
    median = float(np.median(mine))
    if not v.compared:
        return Interval(median, median, median)
    ratio = speed(v)
    return Interval(median, median * ratio.low / ratio.estimate, median * ratio.high / ratio.estimate)


def speed(v: VariantEvidence) -> Interval:
    """Median over requests of the ratio of end-to-end latency to the baseline's."""
    return median_ratio(table(v.compared, "e2e_latency_ms"), table(v.timings, "e2e_latency_ms"))


def signed(value: float) -> str:
    """One decimal, a sign that is not a hyphen, and no minus zero."""
    return f"{round(value, 1) + 0.0:+.1f}".replace("-", "−")


def _trade_off(
    against: str,
    x_label: str,
    x_format: Format,
    at: Mapping[str, Interval],
    variants: Sequence[VariantEvidence],
    baseline: VariantEvidence,
    colours: Colours,
    memory: Mapping[str, int] | None = None,
) -> Figure | None:
    """Accuracy in percent over a cost; intervals are those of the paired differences from the baseline.

    With `memory` the discs have its size, and those that another beats in everything are hollow.
    """
    rows = {v.name: row for v in variants if v.name in at and (row := accuracy_row(v))}
    first = next(iter(rows.values()), None)
    if first is None or first.baseline is None or baseline.name not in at:
        return None
    level = first.baseline
    marks = [Mark(baseline.name, colours[baseline.name], at[baseline.name], Interval(level, level, level))]
    for name, row in rows.items():
        low, high = (level + (end or 0.0) for end in (row.ci_low, row.ci_high))
        marks.append(Mark(name, colours[name], at[name], Interval(row.candidate or 0.0, low, high)))
    lead = (
        f"Higher and further left is better. Bars are {_level(baseline)} intervals of the difference from "
        "the baseline, the band below it is the margin."
    )
    if memory and all(m.label in memory for m in marks):
        marks, told = pareto(marks, memory)
        lead = f"{lead} {told}"
    return Figure(
        f"Accuracy against {against}",
        lead,
        scatter(
            marks,
            title=f"Accuracy in percent against {x_label}, one point a variant",
            x_label=x_label,
            y_label="accuracy, %",
            x_format=x_format,
            band=(level + (first.limit or 0.0), level),
        ),
    )


def pareto(marks: Sequence[Mark], memory: Mapping[str, int]) -> tuple[list[Mark], str]:
    """The Pareto front: by the estimates, no other is at least as good in all three and better in one."""
    costs = {m.label: (-m.y.estimate, m.x.estimate, memory[m.label]) for m in marks}
    beaten_by = {
        m.label: [
            name
            for name, other in costs.items()
            if other != costs[m.label] and all(a <= b for a, b in zip(other, costs[m.label], strict=True))
        ]
        for m in marks
    }
    most = max(memory[m.label] for m in marks)
    drawn = [replace(m, size=memory[m.label] / most, beaten=bool(beaten_by[m.label])) for m in marks]
    told = f"Discs grow with peak memory, the largest is {human_size(most)}. "
    lost = [f"{name} by {' and '.join(by)}" for name, by in beaten_by.items() if by]
    if not lost:
        return drawn, told + "All are on the Pareto front: each is the best choice for somebody."
    return (
        drawn,
        told + f"Full ones are the Pareto front; hollow ones are beaten in all three: {'; '.join(lost)}.",
    )


def _level(v: VariantEvidence) -> str:
    """Confidence of the interval whose two ends are the gate's one-sided bounds."""
    return f"{2 * v.gate.limits.confidence - 1:.0%}"


def _by_task(others: Sequence[VariantEvidence], colours: Colours) -> Figure | None:
    """Tango intervals for all items first, then task by task, the greatest loss on top."""
    compared = [v for v in others if accuracy_row(v)]
    if not compared:
        return None
    groups: dict[str, list[Mark]] = {}
    notes: dict[str, str] = {}
    for v in compared:
        for row in (accuracy_row(v), *v.gate.slices):
            if row is None or row.delta is None or row.ci_low is None or row.ci_high is None:
                continue
            difference = Interval(row.delta, row.ci_low, row.ci_high)
            task = ALL if row.slice == "all" else row.slice
            groups.setdefault(task, []).append(Mark(v.name, colours[v.name], difference))
            notes[task] = f"{row.baseline:.0f} % of {row.n:,}"
    order = sorted(
        groups, key=lambda task: (task != ALL, float(np.mean([m.x.estimate for m in groups[task]])))
    )
    row = accuracy_row(compared[0])
    return Figure(
        "Difference by task",
        f"Points of accuracy gained or lost, with {_level(compared[0])} Tango intervals of the difference; "
        "beside each task the baseline's accuracy and the number of items. The margin is for all items.",
        forest(
            {task: groups[task] for task in order},
            notes=notes,
            limit=row.limit if row else None,
            title="Differences of accuracy from the baseline by task, with intervals",
            x_label="points",
        ),
        [v.name for v in compared],
    )


def _distribution(
    title: str, metric: str, timed: Sequence[VariantEvidence], colours: Colours
) -> Figure | None:
    if not timed:
        return None
    return Figure(
        title,
        "Share of measurements at or below a time: further left is faster, steeper is steadier.",
        ecdf(
            [Series(v.name, colours[v.name], [getattr(t, metric) for t in v.timings]) for v in timed],
            title=f"Cumulative distribution of {metric}, one curve a variant",
            x_label=f"{metric.removesuffix('_ms')}, ms",
        ),
        [v.name for v in timed],
    )


def _layer_errors(v: VariantEvidence) -> Figure:
    names = list(dict.fromkeys(name for layer in v.layers for name in layer))
    cells = [[layer[name]["error"] if name in layer else math.nan for layer in v.layers] for name in names]
    return Figure(
        f"Error by layer: {v.name}",
        "Relative error of each quantised linear's output on the calibration set, in percent.",
        heatmap(
            [name.rpartition(".")[2] for name in names],
            [str(i) for i in range(len(v.layers))],
            cells,
            title=f"Relative output error of every quantised linear of {v.name}",
        ),
    )
