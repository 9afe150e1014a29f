"""A report as one HTML page, as text and as JSON."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from serve.report.logs import MEASURES, NAMES, Comparison, Report, verdict
from serve.report.quantiles import quantiles
from serve.rollout.evidence import Interval
from serve.rollout.guard import EACH, level

WIDTH, HEIGHT, MARGIN = 460, 240, 40


def told(interval: Interval | None) -> dict[str, float] | None:
    """For JSON."""
    if interval is None:
        return None
    return {"estimate": interval.estimate, "low": interval.low, "high": interval.high}


def figures(report: Report) -> dict[str, Any]:
    """The report as JSON: every figure the page shows."""
    arms = {
        name: {
            "requests": arm.requests,
            "users": len(arm.users),
            "failures": arm.failures,
            "fallbacks": arm.fallbacks,
            "statuses": {str(status): count for status, count in sorted(arm.statuses.items())},
            "errors": dict(sorted(arm.errors.items())),
            "input_tokens": arm.input_tokens,
            "output_tokens": arm.output_tokens,
            "digests": sorted(arm.digests),
            "latency_ms": {
                NAMES[measure]: {name: told(found) for name, found in quantiles(values).items()}
                for measure, values in arm.latencies.items()
            },
        }
        for name, arm in report.arms.items()
    }
    return {
        "experiment": report.experiment,
        "baseline": report.baseline,
        "first": report.first,
        "last": report.last,
        "arms": arms,
        "comparisons": {name: _comparison(found) for name, found in report.comparisons.items()},
        "unassigned": report.unassigned,
        "mirrored": report.mirrored,
        "left_out": {"lines": report.left_out, "first": report.named},
    }


def _comparison(comparison: Comparison) -> dict[str, Any]:
    checked = [step.mismatch.shown() for step in comparison.steps if step.mismatch]
    return {
        "verdict": verdict(comparison),
        "excess_failures": told(comparison.errors.interval(EACH))
        if all(comparison.errors.requests)
        else None,
        "sample_ratio_mismatch": any(checked) if checked else None,
        "steps": [
            {
                "share": step.share,
                "versions": step.versions,
                "requests": {"baseline": step.requests[False], "candidate": step.requests[True]},
                "users": step.mismatch
                and {"baseline": step.mismatch.users[0], "candidate": step.mismatch.users[1]},
                "ratios": {
                    NAMES[name]: told(ratio.interval(level(k))) for name, ratio in step.ratios.items()
                },
                "sample_ratio_mismatch": step.mismatch and step.mismatch.shown(),
            }
            for k, step in enumerate(comparison.steps, 1)
        ],
    }


def page(report: Report) -> str:
    """One page with everything in it, plots too."""
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).resolve().parent), autoescape=True, undefined=StrictUndefined
    )
    plots = {
        NAMES[measure]: _distributions({name: arm.latencies[measure] for name, arm in report.arms.items()})
        for measure in MEASURES
        if any(arm.latencies[measure] for arm in report.arms.values())
    }
    return templates.get_template("report.html").render(report=figures(report), plots=plots)


def _distributions(values: dict[str, list[float]]) -> Markup:
    """Share of requests answered within a time, by arm; times on a logarithmic scale."""
    known = {name: sorted(x for x in found if x > 0) for name, found in values.items()}
    low = min(found[0] for found in known.values() if found)
    high = max(found[-1] for found in known.values() if found)
    span = math.log(high / low) or 1.0

    def at(value: float) -> float:
        return MARGIN + (WIDTH - 2 * MARGIN) * math.log(value / low) / span

    parts = []
    for share in (0, 25, 50, 75, 100):
        y = HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * share / 100
        parts.append(
            Markup('<line x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>').format(MARGIN, WIDTH - MARGIN, y, y)
        )
        parts.append(
            Markup('<text x="{}" y="{:.1f}" text-anchor="end">{} %</text>').format(MARGIN - 4, y + 4, share)
        )
    for value in (low, math.sqrt(low * high), high):
        place = (at(value), HEIGHT - MARGIN + 16, value)
        parts.append(Markup('<text x="{:.1f}" y="{}" text-anchor="middle">{:.4g} ms</text>').format(*place))
    for number, (name, found) in enumerate(known.items()):
        steps = [found[min(len(found) * step // 200, len(found) - 1)] for step in range(201)] if found else []
        points = " ".join(
            f"{at(value):.1f},{HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * step / 200:.1f}"
            for step, value in enumerate(steps)
        )
        parts.append(Markup('<polyline class="c{}" points="{}"/>').format(number % 6, points))
        label = (MARGIN + 8, MARGIN + 14 + 16 * number, number % 6, name)
        parts.append(Markup('<text x="{}" y="{}" class="c{}">{}</text>').format(*label))
    box = Markup('<svg viewBox="0 0 {} {}" role="img">{}</svg>')
    return box.format(WIDTH, HEIGHT, Markup("").join(parts))
