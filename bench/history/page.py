"""Every build's figures over time on one HTML page: no scripts, nothing loaded from elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from bench.history.drift import DRIFT, Change
from bench.history.runs import Run
from bench.svg import WIDTH, Axis, line, svg, tag, text
from engines.units import human_size

COLOURS = 8  # of the page's palette
TITLES = {"accuracy": "accuracy, %", "bytes": "on disk", "peak_memory_bytes": "peak memory", "all": "all"}
NAMED = 5  # figures in the sentence
SHOWN = 60  # builds; older ones stay in the file


def write_page(runs: Sequence[Run], found: Sequence[Change], out: Path) -> None:
    """A chart for each figure, and how the newest build differs from what was published before it."""
    times = sorted({run.time for run in runs})[-SHOWN:]
    recent = [run for run in runs if run.time in times]
    colours = {name: i % COLOURS for i, name in enumerate(dict.fromkeys(run.variant for run in recent))}
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent.parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    drifted = [change for change in found if change.verdict == DRIFT]
    newest = runs[-1]
    page = environment.get_template("history/page.html").render(
        model=newest.model,
        palette=COLOURS,
        colours=colours,
        sentence=sentence(found),
        drifted=bool(drifted),
        newest=newest,
        builds=len({run.time for run in runs}),
        rows=[cells(change) for change in found if change.metric.count(",") == 0 or change.verdict == DRIFT],
        figures=[
            {"title": TITLES.get(metric, title(metric)), "svg": drawn}
            for metric in dict.fromkeys(name for run in recent for name in series(run))
            if (drawn := timeline(metric, recent, times, colours, drifted))
        ],
    )
    out.write_text(page, encoding="utf-8")


def sentence(found: Sequence[Change]) -> str:
    """What the newest build is, in words."""
    drifted = [f"{change.variant} {title(change.metric)}" for change in found if change.verdict == DRIFT]
    judged = sum(change.p is not None for change in found)
    if drifted:
        listed = "; ".join(drifted[:NAMED]) + (" and others" if len(drifted) > NAMED else "")
        return f"{len(drifted)} of {judged} figures of the newest build drifted: {listed}."
    if judged:
        return f"No drift: none of {judged} figures of the newest build is shown to be worse than published."
    return "Nothing to compare the newest build with yet."


def title(metric: str) -> str:
    if metric in TITLES and metric != "accuracy":
        return TITLES[metric]
    name = metric.replace("_latency", "").replace("_ms", "").replace("_", " ")
    return name if metric.startswith("accuracy") else f"{name}, ratio to the baseline"


def cells(change: Change) -> tuple[str, ...]:
    """Variant, figure, as published, now, change with its interval, verdict, why."""
    shown: Callable[[float], str] = human_size if change.metric.endswith("bytes") else "{:.4g}".format
    before, now = ("" if x is None else shown(x) for x in (change.before, change.now))
    told = ""
    if change.difference is not None:
        told = f"{change.difference:+.1f} {change.unit}"
        if change.low is not None and change.high is not None and change.low < change.high:
            told += f" ({change.low:+.1f} to {change.high:+.1f})"
    return change.variant, title(change.metric), before, now, told, change.verdict, change.reason


def series(run: Run) -> dict[str, tuple[float, float, float]]:
    """Every figure of a run with the ends of its interval."""
    sizes = {"bytes": run.bytes, "peak_memory_bytes": run.peak_memory_bytes}
    return run.figures | {name: (float(x),) * 3 for name, x in sizes.items() if x}


def timeline(
    metric: str, runs: Sequence[Run], times: Sequence[str], colours: dict[str, int], drifted: Sequence[Change]
) -> Markup:
    """A line a variant over the builds: full points were published, ringed ones have drifted."""
    left, right, top, bottom = 56, WIDTH - 14, 14, 200
    values = [value for run in runs for value in series(run).get(metric, ())]
    log = metric != "accuracy"  # of a ratio or a size, equal factors are equal distances
    pad = 1.1 if log else max(0.08 * (max(values) - min(values)), 0.5)
    ends = (min(values) / pad, max(values) * pad) if log else (min(values) - pad, max(values) + pad)
    x = Axis(0, max(1, len(times) - 1), left + 8, right - 8)
    y = Axis(*ends, bottom, top, log)
    shown: Callable[[float], str] = human_size if metric.endswith("bytes") else "{:.4g}".format
    parts = []
    for tick in y.ticks(4):
        parts += [
            line(left, y(tick), right, y(tick), "rule"),
            text(left - 6, y(tick) + 4, shown(tick), "tick end"),
        ]
    for i in dict.fromkeys((0, len(times) // 2, len(times) - 1)):
        parts.append(
            text(x(i), bottom + 16, times[i][:10], f"tick {'end' if i and i == len(times) - 1 else 'middle'}")
        )
    for variant, colour in colours.items():
        mine = [
            (times.index(run.time), run, series(run)[metric])
            for run in runs
            if run.variant == variant and metric in series(run)
        ]
        if not mine:
            continue
        path = "L".join(f"{x(i):.1f} {y(value):.1f}" for i, _, (value, _, _) in mine)
        group = [tag("title", variant), tag("path", d=f"M{path}", class_="curve")]
        flagged = any(change.variant == variant and change.metric == metric for change in drifted)
        for place, (i, run, (value, low, high)) in enumerate(mine):
            told = f"{variant}, {run.time[:16]}, {(run.commit or '')[:9]}: {shown(value)}"
            if low < high:
                group.append(line(x(i), y(low), x(i), y(high), "whisker"))
            kind = "point" if run.published else "hollow"
            group.append(tag("circle", tag("title", told), cx=x(i), cy=y(value), r=3.5, class_=kind))
            if flagged and place == len(mine) - 1:
                group.append(tag("circle", cx=x(i), cy=y(value), r=8.0, class_="ring"))
        parts.append(tag("g", *group, class_=f"c{colour}"))
    return svg(bottom + 26, f"{metric} of every variant over the builds", parts)
